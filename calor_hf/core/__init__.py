"""What every other part stands on: registry, frozen settings, the objects passed between the parts, seeding."""
