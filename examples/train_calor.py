# /// script
# requires-python = ">=3.10"
# dependencies = ["calor-hf"]
# ///
"""Fine-tune an image classifier with CALoR; ``calor-hf train`` is the same.

The embedded default, synthetic faces and a small ResNet, a few minutes on a laptop::

    python examples/train_calor.py

Your images (one sub-folder per identity) and a pre-trained model, on every GPU of the machine::

    accelerate launch examples/train_calor.py --model google/vit-base-patch16-224 --dataset path/to/folder \
        --output-dir outputs/vit --num-train-epochs 20 --learning-rate 5e-5 --bf16

The undefended reference, for comparison: ``--defense none``. The paper's setting C, an ordinary fine-tune before the
head is swapped: ``--undefended-epochs 50``. After Ctrl-C: the same command with ``--resume``. Publishing:
``--push-to-hub --hub-model-id you/name``. All options: ``--help``, ``--help-all``.

Steps, in order (`calor_hf/recipes/train.py` reads like this from top to bottom): the data are split; the base
model is loaded; the rank is chosen; the classifier is swapped for a low-rank head; stage `fit` trains it with
cross-entropy and stage `adapt` with confidence adaptation; the checkpoint that keeps validation accuracy is measured on
the test split and saved with a table, curves and numbers.
"""

import sys

from calor_hf.recipes.train import train
from calor_hf.recipes.train_arguments import parse

if __name__ == "__main__":
    train(*parse(sys.argv[1:]))
