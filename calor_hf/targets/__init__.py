"""Models under attack: any classifier as a target, and its restricted views for black-box attacks."""
