"""Speed of the attack loop: against a literal loop over classes, and against the bare passes that it cannot do without.

GMI, 32 pixels: a DCGAN with its discriminator, and a small ResNet as target. Every contender attacks the same classes
from the same latents for the same number of steps, in turns within one process.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import ResNetConfig, ResNetForImageClassification

from benchmarks._paired import paired_ratio, show
from calor_hf.attacks import ATTACKS
from calor_hf.generators import GENERATORS
from calor_hf.targets.hf_target import HFTarget

CLASSES, EACH, STEPS, PAIRS = 20, 5, 40, 5


def timed(work: Callable[[], None]) -> Callable[[], float]:
    """Seconds that a call of ``work`` takes."""

    def run() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    run()  # the first call allocates
    return run


def world(steps: int = STEPS) -> tuple[HFTarget, Any, Any]:
    """Target, generator and attack."""
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], layer_type="basic")
    config.num_labels = CLASSES
    target = HFTarget(ResNetForImageClassification(config), image_size=32)
    kind: Any = GENERATORS.get("dcgan")
    generator = kind(kind.config_class(image_size=32, width=16)).eval()
    gmi = ATTACKS.get("gmi")
    return target, generator, gmi(gmi.configure(steps=steps))


def main() -> None:
    """Print both ratios."""
    target, generator, attack = world()
    labels = torch.arange(CLASSES).repeat_interleave(EACH)

    def ours() -> None:
        attack.run(target, generator, range(CLASSES), images_per_class=EACH)

    def literal() -> None:
        """A class at a time, every weight asking for a gradient, as the authors' scripts do."""
        for label in range(CLASSES):
            z = torch.randn(EACH, generator.latent_dim, requires_grad=True)
            v = torch.zeros_like(z)
            y = torch.full((EACH,), label)
            for _ in range(STEPS):
                image = generator(z)
                loss = -generator.discriminator(image).mean() + 100 * F.cross_entropy(target(image), y)
                loss.backward()
                assert z.grad is not None
                before, v = v, 0.9 * v - 0.02 * z.grad
                z = (z.detach() - 0.9 * before + 1.9 * v).clamp(-1, 1).requires_grad_(True)
                loss.item()  # their scripts print it
        for module in (target.module, generator):
            module.zero_grad()

    def bare() -> None:
        """The same batch through frozen networks, forth and back, and nothing else."""
        weights = [*target.module.parameters(), *generator.parameters()]
        for weight in weights:
            weight.requires_grad_(False)
        z = torch.randn(CLASSES * EACH, generator.latent_dim)
        for _ in range(STEPS):
            z = z.requires_grad_(True)
            image = generator(z)
            loss = -generator.discriminator(image).sum() + 100 * F.cross_entropy(target(image), labels, reduction="sum")
            torch.autograd.grad(loss, z)
            z = z.detach()
        for weight in weights:
            weight.requires_grad_(True)

    show(
        "attack: literal loop / ours",
        paired_ratio(timed(literal), timed(ours), PAIRS),
        ">= 1.5",
        "the ratio below is 1",
    )
    show("attack: bare passes / ours", paired_ratio(timed(bare), timed(ours), PAIRS), ">= 0.93", "1: the passes alone")


if __name__ == "__main__":
    main()
