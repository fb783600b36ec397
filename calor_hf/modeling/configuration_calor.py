"""Configuration of a CALoR model: the base model's configuration and the head's settings."""

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from calor_hf.defenses.calor import CALoRDefenseConfig


class CALoRConfig(PretrainedConfig):
    """Everything that rebuilds a CALoR model: ``config.json`` alone is enough.

    Made by :meth:`CALoRForImageClassification.from_pretrained` and its siblings; written by hand rarely.

    Args:
        base_config: Configuration of the base model, or its dictionary with ``model_type``.
        base_class: Name of the base model's class in transformers.
        head_paths: Paths of the base model's classifiers, as in ``named_modules``, one in most models; loading never
            searches.
        rank: Width of the compressed code.
        activation: Between the head's layers.
        bias: Whether the head's layers have biases.
        input_norm: ``"batchnorm"`` in front of the head, or None.
        ca_a: Strength of confidence adaptation.
        ca_b: Sharpness of confidence adaptation; the target confidence is e^(−1/b).
        kwargs: ``num_labels``, ``id2label``, ``label2id`` and what else any configuration takes.
    """

    model_type = "calor"
    sub_configs = {"base_config": AutoConfig}  # noqa: RUF012
    keys_to_ignore_at_inference = ["features", "loss_terms", "hidden_states", "attentions"]  # noqa: RUF012

    def __init__(
        self,
        base_config: PretrainedConfig | dict[str, Any] | None = None,
        base_class: str | None = None,
        head_paths: Sequence[str] = (),
        rank: int = 1,
        activation: str = "tanh",
        bias: bool = True,
        input_norm: str | None = None,
        ca_a: float = 1.0,
        ca_b: float = 8.0,
        **kwargs: Any,
    ) -> None:
        if isinstance(base_config, dict):
            values = dict(base_config)
            base_config = AutoConfig.for_model(values.pop("model_type"), **values)
        self.base_config = base_config
        self.base_class = base_class
        self.head_paths = list(head_paths)
        self.rank = rank
        self.activation = activation
        self.bias = bias
        self.input_norm = input_norm
        self.ca_a = ca_a
        self.ca_b = ca_b
        super().__init__(**kwargs)

    def defense_config(self) -> CALoRDefenseConfig:
        """Settings of the defence, checked."""
        return CALoRDefenseConfig(
            rank=self.rank,
            activation=self.activation,
            bias=self.bias,
            input_norm=self.input_norm,
            ca_a=self.ca_a,
            ca_b=self.ca_b,
        )
