"""Base class of prior training: how a generator is built, and its two losses of named terms."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from calor_hf.core.config import MethodConfig, setting
from calor_hf.core.registry import Registry
from calor_hf.core.seeding import named_rng
from calor_hf.generators import Generator
from calor_hf.targets.base import Target


@dataclass(frozen=True, kw_only=True)
class PriorConfig(MethodConfig):
    """Settings of every prior training; the defaults are those of its source."""

    steps: int = setting(30_000, "Updates of the generator.", gt=0)
    batch_size: int = setting(64, "Real images of an update, over all processes.", gt=0)


@dataclass(frozen=True, kw_only=True)
class GradientPriorConfig(PriorConfig):
    """Settings of every prior that is trained by gradients."""

    lr: float = setting(2e-4, "Learning rate of Adam, of a GAN for both networks.", gt=0)
    beta1: float = setting(0.5, "First moment's decay.")
    beta2: float = setting(0.999, "Second moment's decay.")
    width: int = setting(64, "Channels of the generator's largest maps.", gt=0)


@dataclass(frozen=True, kw_only=True)
class GANPriorConfig(GradientPriorConfig):
    """Settings of every GAN."""

    discriminator_steps: int = setting(5, "Updates of the discriminator for each.", gt=0)


C = TypeVar("C", bound=PriorConfig)
G = TypeVar("G", bound=GANPriorConfig)

Batch = tuple[Tensor, Tensor]
"""Images (batches_per_update · batch, 3, side, side) in [0, 1] and their labels."""


@dataclass
class TrainDraws:
    """Random numbers of one update, the same however many processes share its batch.

    Attributes:
        seed: Seed of the run.
        step: Updates of the generator done.
        count: Samples of this process.
        like: Device and precision of the numbers.
        process: Number of this process.
        processes: Number of processes.
    """

    seed: int
    step: int
    count: int
    like: Tensor
    process: int = 0
    processes: int = 1
    _calls: int = 0

    def normal(self, columns: int) -> Tensor:
        """(count, columns) standard normal numbers; every call gives others."""
        return self._mine(self._rng().standard_normal((self.count * self.processes, columns)))

    def uniform(self, columns: int) -> Tensor:
        """(count, columns) numbers in [0, 1)."""
        return self._mine(self._rng().random((self.count * self.processes, columns)))

    def labels(self, num_classes: int) -> Tensor:
        """(count,) classes, uniform."""
        return (self.uniform(1).squeeze(1) * num_classes).long().clamp_max(num_classes - 1)

    def _rng(self) -> Any:
        self._calls += 1
        return named_rng(self.seed, "priors/updates", self.step, self._calls)

    def _mine(self, numbers: Any) -> Tensor:
        first = self.process * self.count
        return torch.from_numpy(numbers[first : first + self.count]).to(self.like)


class PriorTraining(ABC, Generic[C]):
    """Training of a generator on public images, so that it can be an attack's prior.

    Attributes:
        config: The settings, frozen.
        needs_target: Whether the model under attack is asked while training; the generator then fits it alone.
        by_gradient: Whether Adam follows the gradient of the losses; otherwise :meth:`solve` sets the weights.
        batches_per_update: Batches of real images that an update reads.
        sizes: Settings of each size that a budget of minutes chooses from, ascending.
        expected: Least number of steps and kind of samples, ascending; empty if that was not measured.
    """

    config_class: ClassVar[type[PriorConfig]]
    needs_target: ClassVar[bool] = False
    by_gradient: ClassVar[bool] = True
    batches_per_update: ClassVar[int] = 1
    sizes: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    expected: ClassVar[tuple[tuple[int, str], ...]] = ()

    def __init__(self, config: C) -> None:
        self.config = config

    @property
    def reads_per_step(self) -> int:
        """Number of updates per step that read real images."""
        return 1

    def asked(self, target: Target | None) -> Target:
        """Return the model under attack, for a prior that needs it.

        Raises:
            ValueError: the prior has none.
        """
        if target is None:
            raise ValueError(f"the prior {type(self).__name__} needs the model under attack; pass target=")
        return target

    @abstractmethod
    def build(self, image_size: int, target: Target | None) -> Generator[Any]:
        """Generator with random weights; the discriminator of a GAN as ``discriminator``."""

    def mean_decay(self, step: int) -> float | None:
        """Share that the running mean of the generator's weights keeps in an update.

        If there is one, this mean is saved, sampled and returned.

        Args:
            step: Number of the update, from 1 on.

        Returns:
            In [0, 1); None (always) means that the weights themselves are saved.
        """
        return None

    def data(self, images: Dataset[Tensor], target: Target | None) -> Dataset[tuple[Tensor, int]]:
        """Return the training data, images with pseudo-labels; by default label 0 for every image."""
        return Unlabeled(images)

    def discriminator_loss(self, generator: Any, target: Any, real: Batch, draws: TrainDraws) -> dict[str, Tensor]:
        """Named scalar terms of the discriminator's loss; empty without a discriminator.

        Args:
            generator: In training mode.
            target: The model under attack, frozen; None means no prior before it.
            real: Images and labels.
            draws: Random numbers for a batch.
        """
        return {}

    @abstractmethod
    def generator_loss(self, generator: Any, target: Any, real: Batch, draws: TrainDraws) -> dict[str, Tensor]:
        """Named scalar terms of the generator's loss; arguments as :meth:`discriminator_loss`."""

    def solve(self, generator: Any, target: Any, real: Batch, draws: TrainDraws) -> dict[str, Tensor]:
        """Set the weights in closed form, and return the terms of the loss before; called if ``by_gradient`` is False.

        Args:
            generator: In training mode.
            target: The model under attack, frozen.
            real: Images and labels of this process; sums are over all ``draws.processes``.
            draws: Random numbers for a batch.
        """
        raise NotImplementedError

    def queries(self, steps: int) -> int:
        """Number of images that the target has labeled after so many updates; 0 if it is not asked for labels alone."""
        return 0


class GANPriorTraining(PriorTraining[G]):
    """Training of a generator against a discriminator.

    ``expected`` is what was seen on public photographs of faces at 32 pixels; see docs/laptop.md.
    """

    sizes = (
        {"width": 16, "discriminator_steps": 1, "batch_size": 32, "lr": 5e-4},
        {"width": 32, "discriminator_steps": 1, "batch_size": 32, "lr": 5e-4},
        {},
    )
    expected = (
        (0, "blotches, with which an audit has no power: pass more minutes"),
        (1000, "blurred faces that are much alike; more minutes make them differ"),
        (3000, "faces that differ from each other, with blurred details"),
    )

    @property
    def reads_per_step(self) -> int:
        """Updates of the discriminator."""
        return self.config.discriminator_steps

    @abstractmethod
    def discriminator_loss(self, generator: Any, target: Any, real: Batch, draws: TrainDraws) -> dict[str, Tensor]:
        """Named scalar terms of the discriminator's loss."""


class Unlabeled(Dataset[tuple[Tensor, int]]):
    """Images, each with label 0."""

    def __init__(self, images: Dataset[Tensor]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], 0


PRIORS: Registry[PriorTraining[Any]] = Registry("prior", "calor_hf.priors")
