"""IF-GMI: the latents first, then the feature maps between the generator's blocks, each near where it started."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from calor_hf.attacks.base import ATTACKS
from calor_hf.attacks.batch import Batch
from calor_hf.attacks.gradient import Projection
from calor_hf.attacks.ppa import CropAttack, CropAttackConfig
from calor_hf.core.config import setting
from calor_hf.generators import Generator
from calor_hf.targets.base import Target

RADII = (1000, 2000, 3000, 4000, 5000, 6000, 8000, 8000)  # of each stage, in the authors' network
STYLE_WIDTH = 512


@dataclass(frozen=True, kw_only=True)
class IFConfig(CropAttackConfig):
    """Settings of :class:`IFGMI`."""

    steps: int = setting(50, "Steps of the first stage, on the latents alone.")
    later_steps: int = setting(10, "Steps of each later stage.", ge=1, scales_to=1)
    most_stages: int = setting(8, "Stages at most; always fewer than the blocks.", ge=1)
    radius: float = setting(1.0, "Factor of the radii that variables may move; 0: anywhere.", ge=0)
    carry_skip: bool = setting(False, "Later stages keep what the blocks before them painted; the source drops it.")


@ATTACKS.register("if_gmi")
class IFGMI(CropAttack[IFConfig]):
    """Optimize the latents, then feature maps inside the generator (Qiu et al., ECCV 2024).

    Stage k runs the generator from block k on. Its variables are rows (latents, map, what was painted before), the last
    of which is never moved. After each step latents and map are brought back into L1 balls around their starts.

    As in the source, nothing is selected at the end, and the last stage is the result: the authors also report the best
    stage by an evaluation model, which no attacker has. The authors save the images from before a stage's last step;
    here they are those after it.

    ``latents`` of the reconstructions are the last stage's; the maps that the images also need are not kept.

    Source:
        Qiu et al., "A Closer Look at GAN Priors: Exploiting Intermediate Features for Enhanced Model Inversion
        Attacks", ECCV 2024, arXiv:2407.13863; final-solution/IF-GMI, configuration of FaceScrub with FFHQ. Preset
        ``calor``: MIBench, four stages with more steps, here with the balls that it leaves off.
    """

    config_class = IFConfig
    views_stream = "attacks/if_gmi/views"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "calor": {"steps": 70, "later_steps": 25, "most_stages": 4, "initial_candidates": 5000, "shared_views": False}
    }

    def runs_on(self, generator: Generator[Any]) -> bool:
        """Whether the generator can be taken apart."""
        return generator.num_blocks > 0

    def check(self, target: Target, generator: Generator[Any]) -> None:
        """Refuse generators that cannot be taken apart."""
        if not self.runs_on(generator):
            raise ValueError(
                f"if_gmi optimizes the maps between a generator's blocks, and the generator '{generator.name}' cannot "
                "be taken apart; pass one of stylegan2, dcgan or conditional"
            )

    def stages(self, generator: Generator[Any]) -> Sequence[int]:
        """The last block is never entered by an optimized map, as in the source."""
        count = max(1, min(self.config.most_stages, generator.num_blocks - 1))
        return [self.config.steps] + [self.config.later_steps] * (count - 1)

    def advance(self, generator: Generator[Any], variables: Tensor, batch: Batch, stage: int) -> Tensor:
        """Latents, the map that enters block ``stage``, and what was painted, side by side."""
        latents, hidden, image = _parts(generator, variables, stage - 1)
        hidden, image = generator.run_blocks(latents, hidden, stage - 1, stage, image, batch.labels)
        # The source drops what earlier blocks painted, which changes the image at once.
        kept = [latents, hidden] + ([image] if self.config.carry_skip and image is not None else [])
        return torch.cat([part.flatten(1) for part in kept], dim=1)

    def projection(self, generator: Generator[Any], variables: Tensor, batch: Batch, stage: int) -> Projection | None:
        """Latents and map each into its ball."""
        if self.config.radius == 0:
            return None
        width = generator.latent_dim
        balls = [(slice(0, width), self._radius(stage, width, STYLE_WIDTH))]
        if stage > 0:
            size = math.prod(generator.hidden_shape(stage))
            balls.append((slice(width, width + size), self._radius(stage, size, authors_size(stage))))
        # Around the start of the stage; MIBench has the balls but no center, and around 0 they would crush the styles.
        centers = [variables[:, part].detach().clone() for part, _ in balls]

        def project(moved: Tensor) -> None:
            for (part, radius), center in zip(balls, centers, strict=True):
                moved[:, part] = center + onto_l1_ball(moved[:, part] - center, radius)

        return project

    def synthesize(self, generator: Generator[Any], variables: Tensor, batch: Batch, stage: int) -> Tensor:
        """Images of the blocks from ``stage`` on."""
        latents, hidden, image = _parts(generator, variables, stage)
        images = generator.run_blocks(latents, hidden, stage, None, image, batch.labels)[1]
        assert images is not None  # the last block was run
        return images

    def result(self, generator: Generator[Any], variables: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Latents of the last stage, and its images."""
        images = self.synthesize(generator, variables, batch, len(self.stages(generator)) - 1)
        return variables[:, : generator.latent_dim], images

    def _radius(self, stage: int, size: int, theirs: int) -> float:
        # The authors' radii are for 512 numbers in a style and StyleGAN's maps at 1024 pixels; they shrink or grow with
        # the number of elements, so that an element may move as far, on average.
        return self.config.radius * RADII[min(stage, len(RADII) - 1)] * size / theirs


def onto_l1_ball(points: Tensor, radius: float) -> Tensor:
    """The nearest points whose absolute values sum to ``radius`` at most.

    Outside the ball every element shrinks toward zero by the same amount θ, and stops there; θ is such that the
    remaining absolute values sum to the radius.

    Args:
        points: (rows, n).
        radius: Radius of the ball around zero, > 0.

    Returns:
        (rows, n); points inside as they were.

    Source:
        Duchi et al., "Efficient Projections onto the l1-Ball", ICML 2008.
    """
    sizes = points.abs()
    # A cumulative sum over millions of elements would lose digits in float32.
    ordered = sizes.double().sort(dim=1, descending=True).values
    counts = torch.arange(1, points.shape[1] + 1, device=points.device, dtype=ordered.dtype)
    thetas = (ordered.cumsum(dim=1) - radius) / counts
    # The elements that stay above their θ come first; the last of them says it.
    last = (ordered > thetas).sum(dim=1, keepdim=True).clamp_min(1) - 1
    theta = thetas.gather(1, last).clamp_min(0).to(points.dtype)
    return points.sign() * (sizes - theta).clamp_min(0)


def authors_size(stage: int) -> int:
    """Elements of the map that enters block ``stage`` of StyleGAN at 1024 pixels, from 1 on."""
    side = 4 << (stage - 1)
    return min(512, 2**15 // side) * side**2


def _parts(generator: Generator[Any], variables: Tensor, stage: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Latents, and of later stages the map and what was painted before, if that is carried."""
    width = generator.latent_dim
    if stage == 0:
        return variables, None, None
    shape = generator.hidden_shape(stage)
    size = math.prod(shape)
    latents, hidden, rest = variables.split([width, size, variables.shape[1] - width - size], dim=1)
    side = math.isqrt(rest.shape[1] // 3)
    # Detached: it is carried along, and not optimized.
    image = rest.detach().view(len(rest), 3, side, side) if side else None
    return latents, hidden.view(len(hidden), *shape), image
