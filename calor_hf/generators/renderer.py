"""The renderer of the drawn faces as a generator: the strongest prior there can be for them."""

import math
from dataclasses import dataclass

from torch import Tensor

from calor_hf.core.config import MethodConfig, setting
from calor_hf.data.face_renderer import IDENTITY_NAMES, NUISANCE_NAMES, render_faces
from calor_hf.generators.base import GENERATORS, Generator


@dataclass(frozen=True, kw_only=True)
class RendererConfig(MethodConfig):
    """Settings of :class:`Renderer`."""

    image_size: int = setting(64, "Side of the images in pixels, >= 16.", ge=16)


@GENERATORS.register("renderer")
class Renderer(Generator[RendererConfig]):
    """An oracle: the program that drew the synthetic faces, with no weights to train.

    An attacker never has it; what it rebuilds bounds from above what any prior could. 24 of its 37 latents are the
    person, so a rebuilt image has a true identity to be compared with.
    """

    config_class = RendererConfig

    def __init__(self, config: RendererConfig) -> None:
        super().__init__(config)
        self.latent_dim = len(IDENTITY_NAMES) + len(NUISANCE_NAMES)
        self.image_size = config.image_size

    def numbers(self, latents: Tensor) -> Tensor:
        """(batch, 37) identity, then nuisance numbers in (-1, 1): uniform for standard normal latents."""
        return (latents / math.sqrt(2)).erf()

    def identity(self, latents: Tensor) -> Tensor:
        """(n, 24) identity numbers in (-1, 1)."""
        return self.numbers(latents)[:, : len(IDENTITY_NAMES)]

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """(batch, 3, size, size) drawn faces from (batch, 37) latents."""
        identity, nuisance = self.numbers(latents).split([len(IDENTITY_NAMES), len(NUISANCE_NAMES)], dim=1)
        return render_faces(identity, nuisance, self.image_size)
