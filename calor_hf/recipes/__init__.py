"""What a user runs, as Python functions: train, compare, audit, release."""
