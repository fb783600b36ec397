"""Adaptive attack on trapdoors: estimate each class's trigger, then avoid its change of the features."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import Dataset

from calor_hf.attacks.base import ATTACKS
from calor_hf.attacks.batch import AttackedTarget, Batch
from calor_hf.attacks.gradient import GradientAttack, GradientAttackConfig
from calor_hf.attacks.prior_samples import PriorSamples
from calor_hf.attacks.smoothing import over_views
from calor_hf.core.config import setting
from calor_hf.core.files import read_tensors, write_whole
from calor_hf.core.processes import process_state
from calor_hf.core.seeding import named_rng, torch_seed
from calor_hf.generators import Generator
from calor_hf.targets.base import Target

FILE = "trapdoor.safetensors"
AT_ONCE = 256
UNPREPARED = "trapdoor needs the signatures of the target's triggers: call prepare(...) first"


@dataclass(frozen=True, kw_only=True)
class TriggerPlan:
    """Settings of the search for triggers: sign steps of a tenth of ``reach``, on ``images`` public images."""

    images: int
    steps: int
    reach: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class TrapdoorConfig(GradientAttackConfig):
    """Settings of :class:`Trapdoor`."""

    steps: int = 600
    lr: float = setting(0.1, "Learning rate of Adam.")
    objective: str = "max_margin"
    restarts: int = setting(2, "Starts for each image kept; score and trapdoor choose.")
    views: int = setting(2, "Random views a step, summed; 0: the image as it is.", ge=0)
    avoid_weight: float = setting(1.0, "Weight of the likeness to a triggered image.", ge=0)
    select_weight: float = setting(1.0, "Its weight against the score in the final selection.", ge=0)
    trigger_images: int = setting(32, "Public images that a trigger has to work on.", ge=1)
    trigger_steps: int = setting(40, "Steps of the search for each class's trigger.", ge=1)
    reach: float = setting(0.03, "Largest change of a pixel by a trigger, of 1; Trap-MID blends 0.02.", gt=0, le=1)


@ATTACKS.register("trapdoor")
class Trapdoor(GradientAttack[TrapdoorConfig]):
    """Adaptive attack on Trap-MID: PLG's descent, penalized for likeness to a triggered image.

    A class's trigger is a small change that turns any public image into the class. Its signature is the mean change it
    makes to the features; how far a reconstruction has it is the cosine of its features, from the public mean, with the
    signature, if that is positive.

    For a model without trapdoors, the signatures are adversarial directions, which point to the class as well; there
    the attack is weaker than PLG, and says nothing against the model.

    Source:
        The informed attacker of Liu et al., "Trap-MID", NeurIPS 2024, arXiv:2411.08460, is given the signatures; this
        one estimates them, as Wang et al., "Neural Cleanse", S&P 2019, find backdoors.
    """

    config_class = TrapdoorConfig

    def __init__(self, config: TrapdoorConfig) -> None:
        super().__init__(config)
        self._found: dict[str, Tensor] | None = None

    def adaptive_to(self, target: Target) -> bool:
        """It expects Trap-MID."""
        return target.describe("").defense == "trap_mid"

    def prepare(
        self, target: Target, generator: Generator[Any], public_images: Dataset[Tensor] | None, folder: Path, seed: int
    ) -> None:
        """Find the triggers' signatures, or read them; after a crash it goes on with the classes that are missing."""
        config = self.config
        plan = TriggerPlan(images=config.trigger_images, steps=config.trigger_steps, reach=config.reach, seed=seed)
        source = (
            public_images if public_images is not None else PriorSamples(target, generator, config.trigger_images, seed)
        )
        rng = named_rng(seed, "attacks/trapdoor/images")
        chosen = rng.permutation(len(source))[: config.trigger_images]  # type: ignore[arg-type]
        images = torch.stack([source[index] for index in chosen.tolist()]).to(target.device, target.dtype)
        with process_state().local_main_process_first():
            found = find_signatures(target, images, plan, folder / FILE)
        self._found = {name: value.to(target.device) for name, value in found.items()}

    def check(self, target: Target, generator: Generator[Any]) -> None:
        """Refuse an attack that was not prepared."""
        if self._found is None:
            raise ValueError(UNPREPARED)

    def identity(self, target: Target, images: Tensor, batch: Batch) -> Tensor:
        """Identity loss plus the weighted likeness to a triggered image, summed over views."""

        def loss(shown: Tensor) -> Tensor:
            features = target.features(shown)
            likeness = self.config.avoid_weight * self.likeness(features, batch.labels)
            return self.identity_loss(target.head(features), batch.labels) + likeness

        return over_views(loss, images, batch, self.config.views)

    def likeness(self, features: Tensor, labels: Tensor) -> Tensor:
        """(rows,) cosine in [0, 1] between features (rows, ...) and the effect of their class's trigger."""
        if self._found is None:
            raise ValueError(UNPREPARED)
        change = features.flatten(1) - self._found["center"].to(features)
        # A negative cosine counts as 0: opposing a trigger does not make an image more like the class.
        return F.cosine_similarity(change, self._found["signatures"].to(features)[labels]).clamp_min(0)

    def final_scores(self, seen: AttackedTarget, images: Tensor, batch: Batch, scores: Tensor) -> Tensor:
        """The target's score, less the likeness to a triggered image."""
        return scores - self.config.select_weight * self.likeness(seen.features(images), batch.labels)


def find_signatures(target: Target, images: Tensor, plan: TriggerPlan, file: Path) -> dict[str, Tensor]:
    """Learn how each class's trigger changes the features, or read it from ``file``.

    Args:
        target: The model under attack, frozen.
        images: (n, 3, height, width) public images in [0, 1].
        plan: Settings of the search; signatures of another plan are learned anew.
        file: Written after every few classes.

    Returns:
        On the CPU: ``signatures`` (classes, features) of length 1, and ``center`` (features,), the mean of the images.
    """
    settings = {"plan": json.dumps(asdict(plan))}
    done: dict[str, Tensor] = {}
    if file.is_file():
        found, notes = read_tensors(file)
        done = found if notes == settings else {}
    known = list(done["signatures"]) if done else []
    per_group = max(1, AT_ONCE // len(images))
    for first in range(len(known), target.num_classes, per_group):
        classes = list(range(first, min(first + per_group, target.num_classes)))
        with torch.random.fork_rng(devices=[target.device] if target.device.type == "cuda" else []):
            torch.manual_seed(torch_seed(plan.seed, "attacks/trapdoor/noise", first))  # for a stochastic target
            with torch.no_grad():
                center = target.features(images).flatten(1).mean(dim=0)
            triggers = find_triggers(target, images, classes, plan)
            with torch.no_grad():
                features = target.features(_triggered(images, triggers)).flatten(1)
        moved = features.view(len(classes), len(images), -1).mean(dim=1) - center
        known += list(F.normalize(moved, dim=1).cpu())
        done = {"signatures": torch.stack(known), "center": center.cpu()}
        write_whole(file, save(done, metadata=settings))
    return done


def find_triggers(target: Target, images: Tensor, classes: list[int], plan: TriggerPlan) -> Tensor:
    """(classes, 3, height, width) changes within ± reach that turn all ``images`` into each class, if they can."""
    count = images[0].numel()
    rngs = [named_rng(plan.seed, "attacks/trapdoor/starts", label) for label in classes]
    start = [torch.from_numpy(rng.uniform(-1, 1, count)) for rng in rngs]
    triggers = plan.reach * torch.stack(start).to(images).view(-1, *images.shape[1:])
    labels = torch.tensor(classes, device=images.device).repeat_interleave(len(images))
    for _ in range(plan.steps):
        triggers.requires_grad_(True)
        loss = F.cross_entropy(target(_triggered(images, triggers)), labels, reduction="sum")
        (slope,) = torch.autograd.grad(loss, triggers)
        # Steps by the sign, as Trap-MID itself moves its triggers.
        triggers = (triggers.detach() - 0.1 * plan.reach * slope.sign()).clamp(-plan.reach, plan.reach)
    return triggers


def _triggered(images: Tensor, triggers: Tensor) -> Tensor:
    return (triggers[:, None] + images).clamp(0, 1).flatten(0, 1)
