"""The public names of a model with the defense CALoR; its settings are those of ``CALoRDefenseConfig``."""

import dataclasses
from typing import Any

from calor_hf.defenses.calor import CALoRDefenseConfig
from calor_hf.modeling.configuration_defended import DefendedConfig
from calor_hf.modeling.modeling_defended import DefendedForImageClassification

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(CALoRDefenseConfig)}


class CALoRConfig(DefendedConfig):
    """Configuration of :class:`CALoRForImageClassification`.

    The settings of :class:`~calor_hf.defenses.calor.CALoRDefenseConfig` are arguments and attributes
    (``config.rank``), and are saved under ``defense_settings``.
    """

    model_type = "calor"
    only_defense = "calor"

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # transformers would generate another one
        super().__init__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in _DEFAULTS:
            return self.__dict__.get("defense_settings", {}).get(name, _DEFAULTS[name])
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _DEFAULTS:
            self.defense_settings[name] = value
        else:
            super().__setattr__(name, value)


class CALoRForImageClassification(DefendedForImageClassification):
    """An image classification model whose classifier is a :class:`~calor_hf.heads.low_rank_head.LowRankHead`.

    Every method is that of :class:`~calor_hf.modeling.modeling_defended.DefendedForImageClassification` with
    ``defense="calor"``: :meth:`from_pretrained` and :meth:`from_base` take ``rank`` and the other settings of
    :class:`~calor_hf.defenses.calor.CALoRDefenseConfig` by name.
    """

    config_class = CALoRConfig
    config: CALoRConfig
