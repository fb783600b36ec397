"""The tests: a package, so that no library that installs its own `tests` is taken for it."""
