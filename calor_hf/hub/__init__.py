"""Release: model cards that claim what was measured and nothing else, and pushing that leaks nothing."""
