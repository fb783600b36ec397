"""Speed, memory and accuracy of the library, as ratios measured in one run: ``python -m benchmarks [name ...]``."""
