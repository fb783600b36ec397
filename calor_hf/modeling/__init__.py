"""Defended models as ordinary transformers models; importing this registers them with the Auto classes."""

from transformers import AutoConfig, AutoModelForImageClassification

from calor_hf.modeling.configuration_calor import CALoRConfig
from calor_hf.modeling.modeling_calor import CALoRForImageClassification, CALoRImageClassifierOutput

AutoConfig.register(CALoRConfig.model_type, CALoRConfig)
AutoModelForImageClassification.register(CALoRConfig, CALoRForImageClassification)

__all__ = ["CALoRConfig", "CALoRForImageClassification", "CALoRImageClassifierOutput"]
