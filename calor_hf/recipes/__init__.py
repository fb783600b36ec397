"""The commands as Python functions: train, compare, audit, release."""
