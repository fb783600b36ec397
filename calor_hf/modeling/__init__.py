"""Defended models as ordinary transformers models; importing this registers them with the Auto classes."""

from transformers import AutoConfig, AutoModelForImageClassification

from calor_hf.modeling.configuration_calor import CALoRConfig
from calor_hf.modeling.configuration_defended import DefendedConfig
from calor_hf.modeling.modeling_calor import CALoRForImageClassification, defend
from calor_hf.modeling.modeling_defended import DefendedForImageClassification, DefendedImageClassifierOutput

for _config, _model in (
    (CALoRConfig, CALoRForImageClassification),
    (DefendedConfig, DefendedForImageClassification),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModelForImageClassification.register(_config, _model)

__all__ = [
    "CALoRConfig",
    "CALoRForImageClassification",
    "DefendedConfig",
    "DefendedForImageClassification",
    "DefendedImageClassifierOutput",
    "defend",
]
