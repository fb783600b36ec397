"""The commands of ``python -m examples.paper``: each module has ``run(argv) -> status`` and lets errors pass."""
