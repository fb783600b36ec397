"""A flow: a U-Net that predicts the clean image on a straight path from noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from calor_hf.core.config import setting
from calor_hf.generators.base import GENERATORS, check_side
from calor_hf.generators.denoiser import Denoiser, DenoiserConfig, unet


@dataclass(frozen=True, kw_only=True)
class FlowConfig(DenoiserConfig):
    """Settings of :class:`Flow`."""

    width: int = setting(32, "Channels of the largest maps; the smaller ones have twice as many.", ge=1)
    layers: int = setting(1, "Residual blocks on each side of a map.", ge=1)

    def validate(self) -> None:
        """Refuse sides that cannot be halved down to 8 pixels."""
        check_side(self.image_size)


@GENERATORS.register("flow")
class Flow(Denoiser[FlowConfig]):
    """Flow matching with clean-image prediction, without classes; serves every target.

    Maps shrink to 8 pixels, where one attention layer looks at all of the image.

    Source:
        Prior of "Steering the Flow" (SFMI), 2026, whose network is a ViT with patches of 16 pixels; here it is a U-Net,
        which small sets of small images suit better.
    """

    config_class = FlowConfig

    def __init__(self, config: FlowConfig) -> None:
        super().__init__(config)
        levels = (config.image_size // 8).bit_length()
        channels = [config.width] + [2 * config.width] * (levels - 1)
        self.network: Any = unet(
            {
                "sample_size": config.image_size,
                "block_out_channels": tuple(channels),
                "layers_per_block": config.layers,
                "down_block_types": ("DownBlock2D",) * levels,
                "up_block_types": ("UpBlock2D",) * levels,
                # Of four channels, as in published U-Nets: of one, each map would lose its mean.
                "norm_num_groups": math.gcd(32, config.width, max(1, config.width // 4)),
                "attention_head_dim": None,
            }
        )

    def denoise(self, points: Tensor, time: Tensor) -> Tensor:
        """Data that the network predicts; it is told a thousand times the time."""
        clean: Tensor = self.network(points, 1000 * time).sample
        return clean

    def times(self) -> Sequence[float]:
        """Equally spaced."""
        return [step / self.config.decode_steps for step in range(self.config.decode_steps)]
