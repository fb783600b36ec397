"""`calor-hf card`: write the model card of a saved model, or update it."""

from calor_hf.cli._command import Command
from calor_hf.recipes.release import CardOptions, card

main = Command(
    "card",
    "Write README.md into the folder of a model, with the measurements of training and audit. Text outside the marked"
    " parts is kept when the command runs again.",
    CardOptions,
    card,
    "Call the command again.",
).main
