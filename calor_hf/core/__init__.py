"""Foundations of every other part: registry, frozen settings, the objects passed between the parts, seeding."""
