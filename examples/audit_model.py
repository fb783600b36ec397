# /// script
# requires-python = ">=3.10"
# dependencies = ["calor-hf"]
# ///
"""Attack a model and report what leaks, from Python; ``calor-hf audit`` is the command with all options.

A model that ``make demo`` trained, on the drawn faces, a few minutes on a laptop::

    python examples/audit_model.py outputs/demo/calor outputs/audit-example

For a model of your images, also pass ``dataset``, ``evaluation_model`` and ``generator`` (a prior trained on public
images). After Ctrl-C, run it again: finished attacks are kept. The whole story: docs/audit.md.

Steps, in order (`calor_hf/auditing/audit.py` reads like this from top to bottom): every attack reconstructs
images of every attacked class, and sees only the model and the prior; then the evaluation model evaluates them against
the private images; every number gets its chance level and its interval; the report is written, and a page from it.
"""

import sys

from calor_hf.recipes.audit import AuditRecipe, run_audit

if __name__ == "__main__":
    model, folder = sys.argv[1:]
    options = AuditRecipe(model=model, output_dir=folder, classes="0-7", images_per_class=3, resume=True)
    report = run_audit(options)
    if report is not None:
        for attack in report.attacks:
            for measure in attack.measures:
                print(f"{attack.name} {measure.name}: {measure.value:.3f}")
