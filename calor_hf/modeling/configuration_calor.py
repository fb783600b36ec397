"""Configuration of a CALoR model: the base model's configuration and the head's settings."""

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

from calor_hf.modeling.configuration_defended import WrappedConfig

SETTINGS = ("rank", "activation", "bias", "input_norm", "low_rank", "ca_a", "ca_b")


class CALoRConfig(WrappedConfig):
    """Everything that rebuilds a CALoR model: ``config.json`` alone is enough.

    Made by :meth:`CALoRForImageClassification.from_pretrained` and its siblings; written by hand rarely.

    Args:
        base_config: Configuration of the base model, or its dictionary with ``model_type``.
        base_class: Name of the base model's class in transformers.
        head_paths: Paths of the base model's classifiers, as in ``named_modules``, one in most models.
        rank: Width of the compressed code; None where the model keeps its classifier.
        activation: Between the head's layers.
        bias: Whether the head's layers have biases.
        input_norm: ``"batchnorm"`` in front of the head, or None.
        low_rank: Whether the head is low-rank; False: confidence adaptation alone.
        ca_a: Strength of confidence adaptation.
        ca_b: Sharpness of confidence adaptation; the target confidence is e^(−1/b).
        kwargs: ``num_labels``, ``id2label``, ``label2id`` and what else any configuration takes.
    """

    model_type = "calor"

    def __init__(
        self,
        base_config: PretrainedConfig | dict[str, Any] | None = None,
        base_class: str | None = None,
        head_paths: Sequence[str] = (),
        rank: int | None = None,
        activation: str = "tanh",
        bias: bool = True,
        input_norm: str | None = None,
        low_rank: bool = True,
        ca_a: float = 1.0,
        ca_b: float = 8.0,
        **kwargs: Any,
    ) -> None:
        self.rank = rank
        self.activation = activation
        self.bias = bias
        self.input_norm = input_norm
        self.low_rank = low_rank
        self.ca_a = ca_a
        self.ca_b = ca_b
        super().__init__(base_config, base_class, head_paths, **kwargs)

    @property
    def defense_name(self) -> str:
        """Name of the defense in the registry."""
        return "calor"

    def defense_settings_dict(self) -> dict[str, Any]:
        """Settings of the defense, as plain values."""
        return {name: getattr(self, name) for name in SETTINGS}

    def set_defense(self, settings: dict[str, Any]) -> None:
        """Write settings of the defense into the configuration."""
        for name, value in settings.items():
            setattr(self, name, value)
