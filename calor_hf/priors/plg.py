"""The prior of PLG: a conditional GAN on the public images that the target is surest of, guided by the target."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from calor_hf.core.config import setting
from calor_hf.data.random_views import RandomView
from calor_hf.generators.conditional import Conditional, ConditionalConfig
from calor_hf.priors.base import PRIORS, Batch, GANPriorConfig, GANPriorTraining, TrainDraws
from calor_hf.targets.base import Target
from calor_hf.targets.frozen import frozen
from calor_hf.targets.identity_losses import max_margin


@dataclass(frozen=True, kw_only=True)
class PLGPriorConfig(GANPriorConfig):
    """Settings of :class:`PLGPriorTraining`."""

    beta1: float = 0.0
    beta2: float = 0.9
    latent_dim: int = setting(128, "Width of the latents.")
    top: int = setting(30, "Public images that each class is given.", ge=1)
    guidance: float = setting(0.2, "Weight of the target's max-margin loss.")


@PRIORS.register("plg")
class PLGPriorTraining(GANPriorTraining[PLGPriorConfig]):
    """Faces by class: every class gets the public images that the target takes for it most surely.

    An image may serve several classes, and images that the target is unsure of are used as well.

    Source:
        Yuan et al., AAAI 2023, arXiv:2302.09814; LetheSec/PLG-MI-Attack.
    """

    config_class = PLGPriorConfig
    needs_target = True
    view = RandomView(jitter_probability=0.5)

    def build(self, image_size: int, target: Target | None) -> Conditional:
        """Conditional generator for the target's classes."""
        classes, c = self.asked(target).num_classes, self.config
        return Conditional(
            ConditionalConfig(num_classes=classes, image_size=image_size, latent_dim=c.latent_dim, width=c.width)
        )

    def data(self, images: Dataset[Tensor], target: Target | None) -> Dataset[tuple[Tensor, int]]:
        """``top`` images per class, by the target's probability."""
        return PseudoLabelled(images, top_images(images, self.asked(target), self.config.top))

    def discriminator_loss(self, generator: Any, target: Any, real: Batch, draws: TrainDraws) -> dict[str, Tensor]:
        """``real`` and ``fake``: hinge loss; real images are dithered by one of 256 steps."""
        images, labels = real
        dither = draws.uniform(images[0].numel()).view_as(images) / 256
        wanted = draws.labels(generator.num_classes)
        with torch.no_grad():
            fake = generator(draws.normal(generator.latent_dim), wanted)
        on_real = generator.discriminator(images + dither, labels)
        on_fake = generator.discriminator(fake, wanted)
        return {"real": F.relu(1 - on_real).mean(), "fake": F.relu(1 + on_fake).mean()}

    def generator_loss(self, generator: Any, target: Any, real: Batch, draws: TrainDraws) -> dict[str, Tensor]:
        """``adversarial`` −E[D(fake)], and ``guidance``: the target's margin on a random view of the fake."""
        wanted = draws.labels(generator.num_classes)
        fake = generator(draws.normal(generator.latent_dim), wanted)
        adversarial = -generator.discriminator(fake, wanted).mean()
        logits = self.asked(target)(self.view(fake, draws.uniform(RandomView.NUMBERS)))
        return {"adversarial": adversarial, "guidance": self.config.guidance * max_margin(logits, wanted).mean()}


class PseudoLabelled(Dataset[tuple[Tensor, int]]):
    """Images chosen for classes: item i is image ``chosen[i // top, i % top]`` with its class as label."""

    def __init__(self, images: Dataset[Tensor], chosen: Tensor) -> None:
        self.images, self.chosen = images, chosen

    def __len__(self) -> int:
        return self.chosen.numel()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label, place = divmod(index, self.chosen.shape[1])
        return self.images[int(self.chosen[label, place])], label


@torch.no_grad()
def top_images(images: Dataset[Tensor], target: Target, top: int, batch_size: int = 256) -> Tensor:
    """(classes, top) indices of the images that the target gives each class the highest probability for.

    The target is in evaluation mode meanwhile, whatever mode it was in.

    Raises:
        ValueError: fewer than ``top`` images.
    """
    count = len(images)  # type: ignore[arg-type]
    if count < top:
        raise ValueError(f"expected at least {top} public images for each class to choose from, got {count}")
    batches = DataLoader(images, batch_size=batch_size)
    with frozen(target.module):
        scores = torch.cat(
            [target(batch.to(target.device, target.dtype)).float().softmax(dim=1).cpu() for batch in batches]
        )
    return scores.topk(top, dim=0).indices.T.contiguous()
