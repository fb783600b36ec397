"""`calor-hf robustness`: adversarial examples and backdoors against a model."""

from calor_hf.cli._command import Command
from calor_hf.recipes.robustness import RobustnessOptions, robustness

main = Command(
    "robustness",
    "Evaluate the robustness of an image classifier to adversarial examples, and to its backdoor if it has one. For a"
    " model of synthetic faces only --target is needed.",
    RobustnessOptions,
    robustness,
).main
