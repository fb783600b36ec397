"""Priors with tiny networks, trained for four steps; in a process of its own."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch import Tensor, nn
from torch.utils.data import Dataset

from calor_hf.generators import Generator
from calor_hf.priors import PRIORS, PriorTraining, train_prior
from calor_hf.targets.hf_target import HFTarget
from tests.tiny_models import tiny_base

SIDE, CLASSES, BATCH, IMAGES = 16, 3, 8, 40
SMALL: dict[str, Any] = {"steps": 4, "discriminator_steps": 2, "batch_size": BATCH, "width": 8, "latent_dim": 6}
OWN: dict[str, dict[str, Any]] = {
    "plg": {"top": 7},
    "lokt": {"warm_up": 1},
    "flow": {"decode_steps": 2, "time_mean": -0.8},  # the source's
    "stylegan2": {"mapping_layers": 2, "max_channels": 8, "interval": 3},
}
READS_OF_A_STEP = {"gmi": 2 * BATCH, "ked": 4 * BATCH, "plg": 2 * BATCH, "lokt": 2 * BATCH, "stylegan2": 2 * BATCH,
                   "flow": BATCH, "ridge": BATCH}  # fmt: skip


class Pictures(Dataset[Tensor]):
    """Random public images.

    Args:
        count: How many.
        signal_at: The read, counted from 1, at which this process sends itself ``number``; 0 for none.
        number: Number of the signal.
        broken_from: The read from which on all pixels are NaN; 0 for none.
    """

    def __init__(
        self, count: int = IMAGES, signal_at: int = 0, number: int = signal.SIGINT, broken_from: int = 0
    ) -> None:
        draw = torch.Generator().manual_seed(7)
        self.images = torch.rand(count, 3, SIDE, SIDE, generator=draw)
        self.signal_at, self.number, self.broken_from = signal_at, number, broken_from
        self.reads = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        self.reads += 1
        if self.reads == self.signal_at:
            os.kill(os.getpid(), self.number)
        broken = 0 < self.broken_from <= self.reads
        return torch.full((3, SIDE, SIDE), float("nan")) if broken else self.images[index]


def read_in_step(name: str, step: int) -> int:
    """A read in the middle of a step, counted from 1: for ``signal_at`` and ``broken_from``."""
    before = 1 + (IMAGES if name == "plg" else 0)  # the first image is looked at, and plg scores all
    return before + (step - 1) * READS_OF_A_STEP[name] + 3


def tiny_target(classes: int = CLASSES) -> HFTarget:
    """A random ResNet with batch norm."""
    torch.manual_seed(3)
    return HFTarget(tiny_base("resnet", classes), image_size=SIDE)


def tiny_prior(name: str, **settings: Any) -> PriorTraining[Any]:
    """A prior of four steps."""
    kind = PRIORS.get(name)
    small = {key: value for key, value in SMALL.items() if hasattr(kind.config_class(), key)}
    return kind(kind.config_class.from_dict({**small, **OWN.get(name, {}), **settings}))


def train(name: str, folder: Path, images: Dataset[Tensor] | None = None, **options: Any) -> Generator[Any]:
    """Train a tiny prior on the CPU; options of ``train_prior``, and ``settings``."""
    prior = tiny_prior(name, **options.pop("settings", {}))
    if "target" not in options:
        options["target"] = tiny_target() if prior.needs_target else None
    images = Pictures() if images is None else images
    return train_prior(prior, images, folder, device="cpu", **options)


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def precise(name: str, **settings: Any) -> PriorTraining[Any]:
    """A tiny prior in float64 whose generator's batch norm stands still, so that a batch can be split."""

    class Precise(PRIORS.get(name)):  # type: ignore[misc]
        def build(self, image_size: int, target: Any) -> Generator[Any]:
            made: Generator[Any] = super().build(image_size, target).double()
            for module in made.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.register_forward_pre_hook(lambda norm, _: norm.train(False) and None)
            return made

    return Precise(tiny_prior(name, **settings).config)


def main(options: dict[str, Any]) -> None:
    """Train ``names`` in sub-folders of ``folder``; write how far the weights of the processes lie apart."""
    folder = Path(options["folder"])
    apart: dict[str, float] = {}
    for name in options["names"]:
        images = Pictures(signal_at=options.get("kill_at", 0), number=signal.SIGKILL)
        generator = train(name, folder / name, images, save_steps=options.get("save_steps", 500))
        weights = torch.cat([value.flatten().double() for value in generator.state_dict().values()])
        everywhere = gather(weights.unsqueeze(0))
        apart[name] = float((everywhere - everywhere[0]).abs().max())
        assert len(everywhere) == PartialState().num_processes
    for name in options.get("precise", []):
        train_prior(precise(name), Pictures(), folder / f"precise {name}", target=tiny_target(), device="cpu")
    if PartialState().is_main_process:
        report = {"processes": PartialState().num_processes, "apart": apart}
        (folder / "report.json").write_text(json.dumps(report))
