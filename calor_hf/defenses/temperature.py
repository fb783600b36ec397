"""Temperature: cross-entropy, then scores divided by one number, the control for confidence adaptation."""

from dataclasses import dataclass, replace
from typing import Any

from calor_hf.core.config import setting
from calor_hf.core.outputs import Stage
from calor_hf.defenses.base import DEFENSES, Strength
from calor_hf.defenses.calor import check_strength, check_target, target_confidence
from calor_hf.defenses.low_rank import OptionalLowRankConfig, OptionalLowRankDefense


@dataclass(frozen=True, kw_only=True)
class TemperatureConfig(OptionalLowRankConfig):
    """Settings of :class:`Temperature`."""

    low_rank: bool = setting(False, "Whether the head is low-rank; false: the model's own classifier.")
    ca_b: float = setting(8.0, "Sharpness b of the confidence adaptation to compare with; the confidence is e^(-1/b).")

    def validate(self) -> None:
        """Refuse a confidence outside (0, 1)."""
        super().validate()
        check_strength(1.0, self.ca_b)


@DEFENSES.register("temperature")
class Temperature(OptionalLowRankDefense[TemperatureConfig]):
    """Scores divided by one temperature: the control for confidence adaptation, no defense (Guo et al., 2017).

    Training is cross-entropy. At its end the last layer's weight and bias are divided by the temperature T at which
    correctly classified training images have the mean confidence e^(−1/b) that confidence adaptation leads to; the
    predicted classes stay the same. This defends against nothing: the Poincaré loss is exactly invariant to the scale
    of the scores, and the gradient of the max-margin loss is multiplied by 1 / T alone, which Adam cancels. So only
    the difference between ``calor`` and this control can be an effect of confidence adaptation.

    Source:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; here T is fitted to a mean confidence.
    """

    config_class = TemperatureConfig
    log_odds_suffice = True

    @classmethod
    def complete(cls, config: TemperatureConfig, in_features: int, num_labels: int) -> TemperatureConfig:
        """As :meth:`CALoR.complete <calor_hf.defenses.calor.CALoR.complete>`."""
        check_target(config.ca_b, num_labels)
        return super().complete(config, in_features, num_labels)

    @property
    def target_confidence(self) -> float:
        """Mean confidence e^(−1/b) of correctly classified training images."""
        return target_confidence(self.config.ca_b)

    @classmethod
    def strength(cls, in_features: int, num_labels: int) -> Strength | None:
        """Return ``None``, as strengths are matched by accuracy, which no temperature changes."""
        return None

    def stages(self, args: Any) -> list[Stage]:
        """``fit``, after which the scores are rescaled."""
        (fit,) = super().stages(args)
        return [replace(fit, rescale_to=self.target_confidence)]
