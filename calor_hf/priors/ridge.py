"""The prior that fits public images to the target's features by ridge regression."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calor_hf.core.config import setting
from calor_hf.generators.ridge import Ridge, RidgeConfig
from calor_hf.priors.base import PRIORS, Batch, PriorConfig, PriorTraining, TrainDraws
from calor_hf.targets.base import Target
from calor_hf.targets.frozen import frozen


@dataclass(frozen=True, kw_only=True)
class RidgePriorConfig(PriorConfig):
    """Settings of :class:`RidgePriorTraining`."""

    steps: int = 200
    batch_size: int = 128
    penalty: float = setting(0.01, "Penalty of the weights, as a share of the features' mean variance.", gt=0)


@PRIORS.register("ridge")
class RidgePriorTraining(PriorTraining[RidgePriorConfig]):
    """Ridge regression from the target's features of public images to the images, exact after every update.

    Nothing is trained by gradients: an update reads a batch, adds it to the normal equations and solves them. ``steps``
    · ``batch_size`` public images are read, each as often as all others, give or take once. The prior fits all models
    with the same frozen network, whatever their heads.

    Closed form and use as a prior are ours. On frozen face networks, an attack over it needs tens of steps, and is
    recognized by another network where one over a GAN of the same images is not: docs/results/real_defenses.md.

    Source:
        Trained decoders of this kind: Mai et al., "On the Reconstruction of Face Images from Deep Face Templates",
        TPAMI 2018, arXiv:1703.00832; Yang et al., "Neural Network Inversion in Adversarial Setting via Background
        Knowledge Alignment", CCS 2019, arXiv:1902.08552.
    """

    config_class = RidgePriorConfig
    needs_target = True
    by_gradient = False

    def build(self, image_size: int, target: Target | None) -> Ridge:
        """Linear decoder, as wide as the target's features."""
        asked = self.asked(target)
        with frozen(asked.module), torch.no_grad():
            black = torch.zeros(1, 3, image_size, image_size, device=asked.device, dtype=asked.dtype)
            width = asked.features(black).flatten(1).shape[1]
        return Ridge(RidgeConfig(image_size=image_size, latent_dim=width))

    def generator_loss(self, generator: Any, target: Any, real: Batch, draws: TrainDraws) -> dict[str, Tensor]:
        """``squared_error``: mean over all pixels, in [−1, 1]."""
        images, features = self._read(target, real)
        return {"squared_error": (images - generator.decode(features)).square().mean()}

    @torch.no_grad()
    def solve(self, generator: Any, target: Any, real: Batch, draws: TrainDraws) -> dict[str, Tensor]:
        """Add a batch to the normal equations, and solve them; ``squared_error`` is that of new images."""
        images, features = self._read(target, real)
        error = (images - generator.decode(features)).square().mean()
        if not error.isfinite():
            return {"squared_error": error}  # which the training refuses
        rows, wanted = _exact(torch.cat([features, torch.ones_like(features[:, :1])], dim=1)), _exact(images)
        moments, products = _summed(rows.T @ rows, draws), _summed(rows.T @ wanted, draws)

        # Before this batch, the products of features and images follow from the weights, which solve the equations.
        before, known = _exact(generator.moments), _exact(torch.cat([generator.weight.T, generator.bias[None]]))
        products += self._equations(before) @ known
        moments += before
        found = torch.linalg.solve(self._equations(moments), products)
        generator.weight.copy_(found[:-1].T)
        generator.bias.copy_(found[-1])
        generator.moments.copy_(moments)
        mean, spread = _mean_and_covariance(moments)
        generator.center.copy_(mean)
        identity = torch.eye(len(mean), dtype=spread.dtype, device=spread.device)
        generator.factor.copy_(torch.linalg.cholesky(spread + self._penalty(spread) * identity))
        return {"squared_error": error}

    @torch.no_grad()
    def _read(self, target: Any, real: Batch) -> tuple[Tensor, Tensor]:
        """(batch, pixels) images in [−1, 1], and (batch, width) the target's features of them."""
        images = real[0]
        features = self.asked(target).features(images.to(target.dtype))
        return (2 * images - 1).flatten(1), features.flatten(1).to(images)

    def _equations(self, moments: Tensor) -> Tensor:
        """Left side of the normal equations; the bias has no penalty."""
        if moments[-1, -1] == 0:  # no images: random weights say nothing
            return moments
        penalty = torch.full_like(moments[-1], float(self._penalty(_mean_and_covariance(moments)[1])))
        penalty[-1] = 0
        return moments + moments[-1, -1] * penalty.diag()

    def _penalty(self, covariance: Tensor) -> Tensor:
        # Features that never vary would leave the equations without a solution.
        return (self.config.penalty * covariance.diagonal().mean()).clamp_min(1e-12)


def _exact(values: Tensor) -> Tensor:
    """In double precision, which Apple's GPUs do not have."""
    return values.cpu().double() if values.device.type == "mps" else values.double()


def _mean_and_covariance(moments: Tensor) -> tuple[Tensor, Tensor]:
    """(width,) and (width, width) of the features."""
    mean = moments[-1, :-1] / moments[-1, -1]
    return mean, moments[:-1, :-1] / moments[-1, -1] - mean.outer(mean)


def _summed(values: Tensor, draws: TrainDraws) -> Tensor:
    """Sum over all processes, whose shares of the batch differ."""
    if draws.processes == 1:
        return values
    from accelerate.utils import reduce

    total: Tensor = reduce(values, "sum")
    return total
