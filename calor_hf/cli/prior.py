"""`calor-hf prior`: train the generator of an attack on public images, or import a trained one."""

import sys

from calor_hf.cli._command import GO_ON, Command
from calor_hf.recipes.prior import PriorOptions, prior

main = Command(
    "prior",
    "Train the generator that an attack uses, on public images. Use it under accelerate launch for several devices.",
    PriorOptions,
    prior,
    GO_ON,
).main

if __name__ == "__main__":
    sys.exit(main())
