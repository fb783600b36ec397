"""The prior of SFMI: flow matching with clean-image prediction."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from calor_hf.core.config import setting
from calor_hf.generators.flow import Flow, FlowConfig
from calor_hf.priors.base import PRIORS, Batch, GradientPriorConfig, PriorTraining, TrainDraws
from calor_hf.targets.base import Target


@dataclass(frozen=True, kw_only=True)
class FlowPriorConfig(GradientPriorConfig):
    """Settings of :class:`FlowPriorTraining`."""

    steps: int = 3000
    batch_size: int = 32
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    width: int = 16
    layers: int = setting(1, "Residual blocks on each side of a map.", ge=1)
    decode_steps: int = setting(10, "Passes from noise to image, kept with the generator.", ge=1)
    time_mean: float = setting(0.0, "Mean of logit(time); small images need later times than large ones.")
    time_deviation: float = setting(0.8, "Standard deviation of logit(time).", ge=0)
    ema: float = setting(0.999, "Share that the mean of the weights keeps, less at first.", ge=0, lt=1)


@PRIORS.register("flow")
class FlowPriorTraining(PriorTraining[FlowPriorConfig]):
    """Squared error of the velocity at a random point of a random straight path from noise to image.

    The loss is the source's. Its network, a ViT on 30,000 faces, is not, nor is the mean of the times, −0.8 there: the
    defaults are ours, for 32 pixels and a laptop. ``width=128 layers=2 lr=1e-4 time_mean=-0.8`` is about the size of
    published U-Nets.

    Source:
        "Steering the Flow" (SFMI), 2026: clean-image prediction and velocity loss.
    """

    config_class = FlowPriorConfig
    sizes: ClassVar[tuple[dict[str, Any], ...]] = (
        {}, {"width": 32, "lr": 5e-4}, {"width": 64, "lr": 3e-4},
    )  # fmt: skip

    def build(self, image_size: int, target: Target | None) -> Flow:
        """Flow without a discriminator."""
        names = ("width", "layers", "decode_steps")
        return Flow(FlowConfig(image_size=image_size, **{name: getattr(self.config, name) for name in names}))

    def mean_decay(self, step: int) -> float:
        """``ema``, but no more than the steps so far allow."""
        return min(self.config.ema, (1 + step) / (10 + step))

    def generator_loss(self, generator: Any, target: Any, real: Batch, draws: TrainDraws) -> dict[str, Tensor]:
        """``velocity``: mean of ‖(predicted data − point) / (1 − time) − (data − noise)‖² over all numbers."""
        data = 2 * real[0] - 1
        time = (self.config.time_mean + self.config.time_deviation * draws.normal(1)).sigmoid()
        noise, share = draws.normal(data[0].numel()).view_as(data), time[:, :, None, None]
        points = (1 - share) * noise + share * data
        velocity = (generator.denoise(points, time.squeeze(1)) - points) / (1 - share)
        return {"velocity": (velocity - (data - noise)).square().mean()}
