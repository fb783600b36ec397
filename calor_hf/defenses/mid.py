"""MID: a variational information bottleneck in front of the scores."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calor_hf.core.config import MethodConfig, setting
from calor_hf.core.outputs import Forward, Progress
from calor_hf.defenses.base import DEFENSES, Defense, Strength, cross_entropy
from calor_hf.heads.classifier_head import MeanOfHeads, at_least_float32, linear


@dataclass(frozen=True, kw_only=True)
class MIDConfig(MethodConfig):
    """Settings of :class:`MID`."""

    beta: float = setting(
        0.1, "Weight of the KL term, >= 0: 0.1 for 512 features, 0.005 for 2048 in CALoR's comparison.", ge=0
    )
    sample_at_eval: bool = setting(True, "Draw noise in evaluation too, as all released code does; false: the mean.")


class BottleneckHead(nn.Module):
    """``Linear(m -> 2k)`` gives mean and std of a k-dim normal code, ``Linear(k -> N)`` the scores; k = ⌊m/2⌋.

    Noise comes from torch's default generator of the device, as in dropout, so ``torch.manual_seed`` reproduces it.

    Args:
        in_features: Width m of the features, >= 2.
        num_labels: Number N of classes.
        sample_at_eval: Whether noise is drawn in evaluation mode too.
    """

    SHIFT = 5.0  # softplus(0 − 5) = 0.0067: hardly any noise at the start

    def __init__(self, in_features: int, num_labels: int, sample_at_eval: bool = True) -> None:
        super().__init__()
        self.width = in_features // 2
        if self.width < 1:
            raise ValueError(f"mid halves the features and needs at least 2 of them, got {in_features}")
        self.sample_at_eval = sample_at_eval
        self.encoder = nn.Linear(in_features, 2 * self.width)
        self.decoder = nn.Linear(self.width, num_labels)

    @property
    def last_layer(self) -> nn.Linear:
        """The layer that gives the scores."""
        return self.decoder

    def encode(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation of the code, each (batch, k) float32."""
        with torch.autocast(features.device.type, enabled=False):
            # In float32 also under autocast: the KL term takes the logarithm of deviations near 0.
            mean, raw = linear(self.encoder, at_least_float32(features)).split(self.width, dim=1)
            raw = raw - self.SHIFT
            # softplus(x) is eˣ up to a factor 1 − eˣ/2 where x is small: its logarithm stays exact when it underflows.
            log_std = torch.where(raw < -15, raw, F.softplus(raw.clamp_min(-15)).log())
            return mean, log_std

    def decode(self, mean: Tensor, log_std: Tensor) -> Tensor:
        """(batch, num_labels) logits of a code drawn around ``mean``, or of ``mean`` itself."""
        # All released code draws noise in evaluation too, so published numbers are those of a random model.
        noisy = self.training or self.sample_at_eval
        with torch.autocast(mean.device.type, enabled=False):
            code = mean + log_std.exp() * torch.randn_like(mean) if noisy else mean
            return linear(self.decoder, code)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, num_labels) logits, float32."""
        return self.decode(*self.encode(features))


@DEFENSES.register("mid")
class MID(Defense[MIDConfig]):
    """Variational information bottleneck: noise in the features, as much as their use allows (Wang et al., AAAI 2021).

    The authors' code was not available; this is what three re-implementations agree on. The KL term is a sum over the
    code's dimensions, so ``beta`` is not comparable between models of different width.

    Source:
        Wang, Zhang, Jia, "Improving Robustness to Model Inversion Attacks via Mutual Information Regularization", AAAI
        2021, arXiv:2009.05241; MIBench and the BiDO repository.
    """

    config_class = MIDConfig

    @property
    def own_head(self) -> bool:
        """The classifier is replaced."""
        return True

    @property
    def stochastic(self) -> bool:
        """Whether noise is drawn in evaluation."""
        return self.config.sample_at_eval

    @classmethod
    def complete(cls, config: MIDConfig, in_features: int, num_labels: int) -> MIDConfig:
        """Check that there are at least two features, which are halved."""
        if in_features < 2:
            raise ValueError(f"mid halves the features and needs at least 2 of them, got {in_features}")
        return config

    @classmethod
    def strength(cls, in_features: int, num_labels: int) -> Strength:
        """``beta``, from negligible to more than is ever used; the KL term grows with the width."""
        return Strength("beta", 0.05 / in_features, 500 / in_features, log=True)

    def build_head(self, in_features: int, num_labels: int) -> BottleneckHead:
        """The bottleneck with random weights."""
        return BottleneckHead(in_features, num_labels, self.config.sample_at_eval)

    def run_head(self, head: nn.Module, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and ``mean`` and ``log_std`` of the code, (batch, k); concatenated for several heads."""
        pairs: list[tuple[Any, Tensor]] = [(head, features)]
        if isinstance(head, MeanOfHeads):
            pairs = list(head.parts(features))
        codes = [part.encode(x) for part, x in pairs]
        scores = [part.decode(*code) for (part, _), code in zip(pairs, codes, strict=True)]
        mean, log_std = (torch.cat(values, dim=1) for values in zip(*codes, strict=True))
        return torch.stack(scores).mean(0), {"mean": mean, "log_std": log_std}

    def loss(self, out: Forward, progress: Progress) -> dict[str, Tensor]:
        """``cross_entropy``, and ``kl``: β times the divergence of the code from the standard normal; in nats."""
        terms = {"cross_entropy": cross_entropy(out)}
        if out.extras:
            terms["kl"] = self.config.beta * kl_to_standard_normal(out.extras["mean"], out.extras["log_std"])
        return terms


def kl_to_standard_normal(mean: Tensor, log_std: Tensor) -> Tensor:
    """Kullback-Leibler divergence of N(mean, e^(2·log_std)) from N(0, 1): summed over dimensions, mean over the batch.

    Args:
        mean: (batch, dimensions).
        log_std: (batch, dimensions).

    Returns:
        Scalar in nats, >= 0.
    """
    mean, log_std = at_least_float32(mean), at_least_float32(log_std)
    # expm1: where the code is nearly standard, the terms cancel.
    return (0.5 * ((2 * log_std).expm1() - 2 * log_std + mean**2)).sum(dim=1).mean()
