"""`calor-hf push`: publish a saved model with its card, and no other file of its folder."""

from calor_hf.cli._command import Command
from calor_hf.hub.push import PushFailedError
from calor_hf.recipes.release import PushOptions, push

main = Command(
    "push",
    "Publish a saved model on the Hub: weights, configuration, image processor and a card with measurements;"
    " checkpoints, optimizer, logs and images stay. A single commit, applied entirely or not at all.",
    PushOptions,
    push,
    "The repository holds all of this push or none of it: the same command again goes on.",
    {PushFailedError: 1},
).main
