"""The paper's laboratory: its analyses, image sets, settings and face networks, on top of calor_hf."""

from transformers import AutoConfig, AutoModelForImageClassification

from examples.paper.configuration_ir import IRConfig
from examples.paper.modeling_ir import IRForImageClassification

AutoConfig.register(IRConfig.model_type, IRConfig)
AutoModelForImageClassification.register(IRConfig, IRForImageClassification)
