"""Cost of decoys against the undefended model: ViT-B/16 at 224 pixels, k = 4, one thread.

Parameters, operations and file size are counted. Times are of the process, not of a clock on the wall, so that
other work on the machine matters less. A step of training is on the same number of images: decoys bring k times as
many, so that a training with decoys takes k times the steps.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig, ViTForImageClassification

from benchmarks._paired import paired_ratio, show
from calor_hf.modeling import defend

K, BATCH, PAIRS, LIMIT = 4, 4, 9, "1: the base model"
COUNTED: tuple[tuple[int, dict[str, Any], str], ...] = (
    (100, {}, "<= 1.01"),
    (530, {}, "stated"),
    (530, {"rank": 32}, "<= 1.01"),
)  # classes, settings, goal


def models(classes: int, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """With decoys, and undefended."""
    base, undefended = (ViTForImageClassification(ViTConfig(num_labels=classes)) for _ in range(2))
    return defend(base, "decoys", k=K, **settings), undefended


def flops(model: nn.Module) -> float:
    """Floating-point operations for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixel_values=torch.empty(1, 3, 224, 224))
    return float(counter.get_total_flops())


def file_size(model: Any) -> int:
    """Bytes of the saved weights."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def main() -> None:
    """Print the ratios."""
    torch.set_num_threads(1)
    for classes, settings, goal in COUNTED:
        ours, theirs = models(classes, **settings)
        work = flops(ours) / flops(theirs)
        sizes = [sum(weight.numel() for weight in model.parameters()) for model in (ours, theirs)]
        for what, value in (("parameters", sizes[0] / sizes[1]), ("operations", work)):
            head = "".join(f", {name} {number}" for name, number in settings.items())
            show(f"{what}, decoys / none ({classes} classes{head})", (value, value, value), goal, LIMIT)
    classes = COUNTED[0][0]
    ours, theirs = models(classes)
    size = file_size(ours) / file_size(theirs)
    show(f"bytes of the weights, decoys / none ({classes} classes)", (size, size, size), "<= 1.01", LIMIT)
    images = torch.rand(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    labels = {"labels": torch.arange(BATCH)}

    def inference(model: nn.Module) -> float:
        begin = time.process_time()
        with torch.no_grad():
            model(pixel_values=images)
        return time.process_time() - begin

    def training(model: nn.Module, **given: torch.Tensor) -> float:
        begin = time.process_time()
        model(pixel_values=images, **labels, **given).loss.backward()
        model.zero_grad(set_to_none=False)
        return time.process_time() - begin

    of_ours = {"identities": K * labels["labels"]}
    for model in (ours.eval(), theirs.eval()):
        inference(model)
    passes = paired_ratio(lambda: inference(ours), lambda: inference(theirs), 2 * PAIRS)
    show(f"inference, decoys / none ({classes} classes)", passes, "<= 1.01", LIMIT)
    training(ours.train(), **of_ours), training(theirs.train())
    steps = paired_ratio(lambda: training(ours, **of_ours), lambda: training(theirs), PAIRS)
    show(f"training, the same images, decoys / none ({classes} classes)", steps, "<= 1.01", LIMIT)
