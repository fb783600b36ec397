"""`calor-hf export`: a model as one ONNX or torch.export file, checked against the model."""

from calor_hf.cli._command import Command
from calor_hf.recipes.export import ExportOptions, export

main = Command(
    "export",
    "Write a model as one file that runs without transformers, and check it.",
    ExportOptions,
    export,
    statuses={RuntimeError: 1},
).main
