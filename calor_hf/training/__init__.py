"""Staged training, its arguments, and the choice of the rank."""
