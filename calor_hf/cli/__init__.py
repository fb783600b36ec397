"""The `calor-hf` command: one file per sub-command."""
