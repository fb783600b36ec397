"""Attack a model and report what leaks; ``calor-hf audit`` is the same.

The model that ``make demo`` trained, on the drawn faces, a few minutes on a laptop::

    python examples/audit_model.py --target outputs/demo

Your model and your images, with a prior trained on public images and an evaluation model, on every GPU of the machine::

    accelerate launch examples/audit_model.py --target outputs/vit --dataset path/to/folder --evaluation-model
    outputs/evaluation-model \
        --generator outputs/prior --output-dir outputs/audit

After Ctrl-C: the same command with ``--resume``. All options: ``--help``; the whole story: docs/audit.md.

What happens, in order (`calor_hf/auditing/audit.py` reads like this from top to bottom): every attack rebuilds images
of every person, and sees nothing but the model and the prior; then the evaluation models look at them, and at the
private images; every number gets its chance level and its interval; the report is written, and a page from it.
"""

import sys

from calor_hf.cli.audit import main

if __name__ == "__main__":
    sys.exit(main())
