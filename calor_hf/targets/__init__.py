"""Models under attack: any classifier as a target, and the views of it that an attack is given."""
