# /// script
# requires-python = ">=3.10"
# dependencies = ["calor-hf"]
# ///
"""Compare defenses on one base model and data, from Python; ``calor-hf compare`` is the command with all options.

A base model that has not seen the private identities, then three defenses on the embedded data::

    python examples/train_calor.py --defense none --public-faces --num-identities 128 --output-dir outputs/public
    python examples/compare_defenses.py --model outputs/public --num-train-epochs 10 --learning-rate 1e-3

The undefended reference is trained first. The strength of MID (beta) is then tuned until its validation accuracy is
2 points below, within 1 point, in at most 5 trainings; the ranks of CALoR are given, so that it is trained once for
each. The table says whether each defense reached the common accuracy, with test accuracy, confidence, rank of the head,
time and memory.
"""

import sys
from pathlib import Path

from calor_hf.recipes.compare import CompareOptions, compare, failures

if __name__ == "__main__":
    options = CompareOptions(
        defenses=["mid", "calor:rank=8", "calor:rank=16"],
        accuracy_drop=2.0,
        tolerance=1.0,
        trials=5,
        output_dir=Path("outputs/compare"),
        resume=True,
        train_options=sys.argv[1:],
    )
    found = compare(options)
    for row in found["defenses"]:
        print(row["name"], "failed" if row["failed"] else row["test_accuracy"])
    sys.exit(bool(failures(found)))
