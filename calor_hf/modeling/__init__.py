"""Defended models as transformers models, registered with the Auto classes."""

from transformers import AutoConfig, AutoModelForImageClassification

from calor_hf.modeling.adapters import lora_config
from calor_hf.modeling.configuration_defended import DefendedConfig
from calor_hf.modeling.export import export_model
from calor_hf.modeling.modeling_calor import CALoRConfig, CALoRForImageClassification
from calor_hf.modeling.modeling_defended import DefendedForImageClassification, DefendedImageClassifierOutput, defend
from calor_hf.modeling.released import save_standalone

for _config, _model in ((CALoRConfig, CALoRForImageClassification), (DefendedConfig, DefendedForImageClassification)):
    AutoConfig.register(_config.model_type, _config)
    AutoModelForImageClassification.register(_config, _model)

__all__ = [
    "CALoRConfig",
    "CALoRForImageClassification",
    "DefendedConfig",
    "DefendedForImageClassification",
    "DefendedImageClassifierOutput",
    "defend",
    "export_model",
    "lora_config",
    "save_standalone",
]
