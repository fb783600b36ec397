"""Transfer learning: early layers keep their public pre-trained weights."""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from calor_hf.core.config import MethodConfig, setting
from calor_hf.core.outputs import Progress
from calor_hf.core.seeding import StepDraws
from calor_hf.defenses.base import DEFENSES, Defense, Strength
from calor_hf.defenses.training_run import TrainingRun


@dataclass(frozen=True, kw_only=True)
class TransferConfig(MethodConfig):
    """Settings of :class:`Transfer`."""

    freeze_ratio: float = setting(0.5, "Share of the backbone that is frozen, from the input on, 0 to 1.", ge=0, le=1)
    count_by: str = setting(
        "leaf",
        "Unit in which the ratio counts: leaf (modules without children, those without weights too: CALoR's "
        "comparison), param_leaf (leaves with weights), params (weights), children (blocks: the largest part taken "
        "apart until none holds more than half of the weights).",
        choices=("leaf", "param_leaf", "params", "children"),
    )
    freeze_bn_stats: bool = setting(
        False, "Keep running statistics of frozen batch norms too; released code lets them drift."
    )


@DEFENSES.register("transfer")
class Transfer(Defense[TransferConfig]):
    """Early layers frozen at their public pre-training values, the rest fine-tuned (Ho et al., TL-DMI, CVPR 2024).

    It defends only if pre-training used images of other identities; frozen random weights are no defense. The
    classifier is always trained. As in MIBench, leaf i (from 0, in order of definition, the classifier counted) is
    frozen if i < ratio · count. Parameters outside of leaves (positions, class token, layer scales) are never frozen in
    MIBench; here they follow the first leaf of the module that owns them, so that those next to the pixels are frozen
    as soon as anything is.

    Source:
        Ho, Hao, Chandrasegaran, Nguyen, Cheung, "Model Inversion Robustness: Can Transfer Learning Help?", CVPR 2024,
        arXiv:2405.05588; counting as in MIBench.
    """

    config_class = TransferConfig
    needs_trainer = True
    log_odds_suffice = True

    @classmethod
    def strength(cls, in_features: int, num_labels: int) -> Strength:
        """The share that is frozen."""
        return Strength("freeze_ratio", 0.1, 1.0)

    def begin(self, run: TrainingRun) -> None:
        """Freeze the early layers."""
        super().begin(run)
        backbone = run.model.backbone
        self._fixed = self.fixed_batch_norms(backbone)
        names = set(self.frozen(backbone))
        for name, weight in backbone.named_parameters():
            if name in names:
                weight.requires_grad_(False)

    def on_batch(self, inputs: dict[str, Any], draws: StepDraws, progress: Progress) -> dict[str, Any]:
        """Keep frozen batch norms in evaluation mode, if their statistics are to stay; the batch is unchanged."""
        for module in self._fixed:
            # In every step, as the trainer puts the whole model into training mode before each.
            module.eval()
        return inputs

    def frozen(self, backbone: nn.Module) -> list[str]:
        """Names of the backbone's frozen parameters."""
        ratio = self.config.freeze_ratio
        if ratio == 0:
            return []
        if self.config.count_by != "params":
            leaves = {id(leaf) for leaf in self._frozen_leaves(backbone)}
            return [
                f"{path}.{name}" if path else name
                for path, module in backbone.named_modules()
                if id(next(iter(_leaves(module)))) in leaves
                for name, _ in module.named_parameters(recurse=False)
            ]
        names = [name for name, _ in backbone.named_parameters()]
        sizes = [parameter.numel() for parameter in backbone.parameters()]
        budget, chosen = ratio * sum(sizes), []
        for name, size in zip(names, sizes, strict=True):
            if budget < size / 2:  # the parameter across the limit goes to the nearer side
                break
            budget -= size
            chosen.append(name)
        return chosen

    def fixed_batch_norms(self, backbone: nn.Module) -> list[nn.Module]:
        """Frozen batch norms, if their statistics are to stay."""
        if not self.config.freeze_bn_stats:
            return []
        frozen = set(self.frozen(backbone))
        return [
            module
            for path, module in backbone.named_modules()
            if isinstance(module, _BatchNorm) and f"{path}.weight" in frozen
        ]

    def _frozen_leaves(self, backbone: nn.Module) -> list[nn.Module]:
        ratio, by = self.config.freeze_ratio, self.config.count_by
        if by == "children":
            blocks = _blocks(backbone)
            return [leaf for block in blocks[: math.ceil(ratio * len(blocks) - 1e-9)] for leaf in _leaves(block)]
        # Leaves without weights count too, as in MIBench: an activation moves the limit like a convolution.
        leaves = _leaves(backbone)
        if by == "param_leaf":
            leaves = [leaf for leaf in leaves if next(leaf.parameters(recurse=False), None) is not None]
        # Less 1e-9, as 0.55 · 100 leaves is 55.00000000000001 in floating point.
        return leaves[: math.ceil(ratio * len(leaves) - 1e-9)] if by != "params" else []


def _leaves(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if next(part.children(), None) is None]


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Parts in order of definition, none with more than half of the weights unless it is a leaf."""

    def size(part: nn.Module) -> int:
        return sum(parameter.numel() for parameter in part.parameters())

    blocks, half = [module], size(module) / 2
    while True:
        largest = max(range(len(blocks)), key=lambda i: size(blocks[i]))
        children = [child for child in blocks[largest].children() if size(child) > 0]
        if size(blocks[largest]) <= half or not children:
            return blocks
        blocks[largest : largest + 1] = children
