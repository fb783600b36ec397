"""Compare defenses on one base model and data, at the same validation accuracy; ``calor-hf compare`` is the same.

A base model that has not seen the private people, then all defenses on the embedded data::

    python examples/train_calor.py --defense none --public-faces --num-identities 128 --output-dir outputs/public
    python examples/compare_defenses.py --model outputs/public --num-train-epochs 10 --learning-rate 1e-3

Your images, some defenses, three seeds, four GPUs::

    python examples/compare_defenses.py --defenses calor mid bido --seeds 1 2 3 \
        --launcher "accelerate launch --num_processes 4" --model google/vit-base-patch16-224 --dataset path/to/folder

The undefended reference is trained first. Each defense's strength (rank, beta, lambda, alpha, frozen share, erased
area, weight of the trapdoor) is then tuned until its validation accuracy is 2 points below, within 1 point, in at most
5 trainings; then it is trained on the other seeds. The table says for which defenses that succeeded, with test
accuracy, confidence, rank of the head, time and memory. After Ctrl-C: the same command with ``--resume``.
"""

import sys

from calor_hf.cli.compare import main

if __name__ == "__main__":
    sys.exit(main())
