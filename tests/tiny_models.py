"""Random image classifiers of every architecture, most with some thousand weights, made in a moment."""

import copy
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

IMAGE_SIZE = 32
_TRANSFORMER: dict[str, Any] = {
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_WINDOWS: dict[str, Any] = {
    "image_size": IMAGE_SIZE,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 4,
}
_TWO_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1]}
_LEVIT: dict[str, Any] = {
    "image_size": 64,
    "hidden_sizes": [8, 12, 16],
    "num_attention_heads": [1, 2, 2],
    "depths": [1, 1, 1],
    "key_dim": [4, 4, 4],
    "attention_ratio": [2, 2, 2],
    "mlp_ratio": [2, 2, 2],
}
_PERCEIVER: dict[str, Any] = {
    "num_latents": 4,
    "d_latents": 16,
    "num_blocks": 1,
    "num_self_attends_per_block": 1,
    "num_self_attention_heads": 2,
    "num_cross_attention_heads": 1,
    "image_size": 16,
}
_PYRAMID: dict[str, Any] = {
    "image_size": IMAGE_SIZE,
    "hidden_sizes": [8, 8, 8, 16],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 1, 2],
    "mlp_ratios": [2, 2, 2, 2],
}
_CVT: dict[str, Any] = {
    "num_stages": 2,
    "patch_sizes": [7, 3],
    "patch_stride": [4, 2],
    "patch_padding": [2, 1],
    "embed_dim": [8, 16],
    "num_heads": [1, 2],
    "depth": [1, 2],
    "mlp_ratio": [2.0, 2.0],
    "attention_drop_rate": [0.0, 0.0],
    "drop_rate": [0.0, 0.0],
    "drop_path_rate": [0.0, 0.0],
    "qkv_bias": [True, True],
    "cls_token": [False, True],
    "qkv_projection_method": ["dw_bn", "dw_bn"],
    "kernel_qkv": [3, 3],
    "padding_kv": [1, 1],
    "stride_kv": [2, 2],
    "padding_q": [1, 1],
    "stride_q": [1, 1],
}
_EFFICIENTNET: dict[str, Any] = {
    "image_size": IMAGE_SIZE,
    "width_coefficient": 0.25,
    "depth_coefficient": 0.25,
    "hidden_dim": 320,
    "kernel_sizes": [3, 3],
    "in_channels": [32, 16],
    "out_channels": [16, 24],
    "depthwise_padding": [],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 2],
}
_FOCALNET: dict[str, Any] = {
    "image_size": IMAGE_SIZE,
    "patch_size": 4,
    "embed_dim": 8,
    **_TWO_STAGES,
    "focal_levels": [1, 1],
    "focal_windows": [3, 3],
}
_HGNET: dict[str, Any] = {
    "embedding_size": 8,
    "stem_channels": [3, 8, 8],
    **_TWO_STAGES,
    "stage_in_channels": [8, 8],
    "stage_mid_channels": [8, 8],
    "stage_out_channels": [8, 16],
    "stage_num_blocks": [1, 1],
    "stage_downsample": [False, True],
    "stage_light_block": [False, True],
    "stage_kernel_size": [3, 5],
    "stage_numb_of_layers": [1, 1],
}
_HIERA: dict[str, Any] = {
    "image_size": [IMAGE_SIZE, IMAGE_SIZE],
    "embed_dim": 8,
    "patch_size": [7, 7],
    "patch_stride": [4, 4],
    "patch_padding": [3, 3],
    "depths": [1, 1],
    "num_heads": [1, 2],
    "query_stride": [2, 2],
    "masked_unit_size": [4, 4],
    "masked_unit_attention": [True, False],
    "num_query_pool": 1,
}
_MOBILEVIT: dict[str, Any] = {
    "image_size": IMAGE_SIZE,
    "patch_size": 2,
    "hidden_sizes": [8, 8, 8],
    "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16],
    "num_attention_heads": 2,
}
_POOLFORMER: dict[str, Any] = {
    **_TWO_STAGES,
    "num_encoder_blocks": 2,
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "padding": [2, 1],
}
_SEGFORMER: dict[str, Any] = {
    **_TWO_STAGES,
    "num_encoder_blocks": 2,
    "num_attention_heads": [1, 2],
    "sr_ratios": [4, 1],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "mlp_ratios": [2, 2],
}
_TEXTNET: dict[str, Any] = {
    "stem_kernel_size": 3,
    "stem_stride": 2,
    "stem_num_channels": 3,
    "stem_out_channels": 8,
    "hidden_sizes": [8, 8, 8, 16, 16],
    "conv_layer_kernel_sizes": [[[3, 3]]] * 4,
    "conv_layer_strides": [[2]] * 4,
}
_SIGLIP2: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_patches": 16,
    "patch_size": 8,
}

# Every class of transformers' image classification mapping that can be built without another library (43 of 46: DiNAT
# needs natten, the timm wrapper timm, and ShieldGemma2 has no classifier), and its configuration's settings.
EVERY: dict[str, tuple[str, dict[str, Any]]] = {
    "BeitForImageClassification": ("BeitConfig", _TRANSFORMER),
    "BitForImageClassification": ("BitConfig", {"embedding_size": 8, **_TWO_STAGES, "num_groups": 4}),
    "CLIPForImageClassification": ("CLIPConfig", {"vision_config": _TRANSFORMER}),
    "ConvNextForImageClassification": ("ConvNextConfig", {"num_stages": 2, **_TWO_STAGES}),
    "ConvNextV2ForImageClassification": ("ConvNextV2Config", {"num_stages": 2, **_TWO_STAGES}),
    "CvtForImageClassification": ("CvtConfig", _CVT),
    "Data2VecVisionForImageClassification": ("Data2VecVisionConfig", _TRANSFORMER),
    "DeiTForImageClassification": ("DeiTConfig", _TRANSFORMER),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", _TRANSFORMER),
    "Dinov2ForImageClassification": ("Dinov2Config", {**_TRANSFORMER, "mlp_ratio": 2}),
    "Dinov2WithRegistersForImageClassification": ("Dinov2WithRegistersConfig", {**_TRANSFORMER, "mlp_ratio": 2}),
    "DonutSwinForImageClassification": ("DonutSwinConfig", _WINDOWS),
    "EfficientNetForImageClassification": ("EfficientNetConfig", _EFFICIENTNET),
    "FocalNetForImageClassification": ("FocalNetConfig", _FOCALNET),
    "HGNetV2ForImageClassification": ("HGNetV2Config", _HGNET),
    "HieraForImageClassification": ("HieraConfig", _HIERA),
    "IJepaForImageClassification": ("IJepaConfig", _TRANSFORMER),
    "ImageGPTForImageClassification": (
        "ImageGPTConfig",
        {"vocab_size": 16, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2},
    ),
    "LevitForImageClassification": ("LevitConfig", _LEVIT),
    "LevitForImageClassificationWithTeacher": ("LevitConfig", _LEVIT),
    "MetaClip2ForImageClassification": ("MetaClip2Config", {"vision_config": _TRANSFORMER}),
    "MobileNetV1ForImageClassification": ("MobileNetV1Config", {"depth_multiplier": 0.125}),
    "MobileNetV2ForImageClassification": ("MobileNetV2Config", {"depth_multiplier": 0.125}),
    "MobileViTForImageClassification": ("MobileViTConfig", _MOBILEVIT),
    "MobileViTV2ForImageClassification": ("MobileViTV2Config", {"image_size": 64, "width_multiplier": 0.125}),
    "PerceiverForImageClassificationLearned": ("PerceiverConfig", _PERCEIVER),
    "PerceiverForImageClassificationFourier": ("PerceiverConfig", _PERCEIVER),
    "PerceiverForImageClassificationConvProcessing": ("PerceiverConfig", _PERCEIVER),
    "PoolFormerForImageClassification": ("PoolFormerConfig", _POOLFORMER),
    "PPLCNetForImageClassification": ("PPLCNetConfig", {"scale": 0.25}),
    "PvtForImageClassification": ("PvtConfig", {**_PYRAMID, "sequence_reduction_ratios": [8, 4, 2, 1]}),
    "PvtV2ForImageClassification": ("PvtV2Config", _PYRAMID),
    "RegNetForImageClassification": ("RegNetConfig", {"embedding_size": 8, **_TWO_STAGES, "groups_width": 4}),
    "ResNetForImageClassification": ("ResNetConfig", {"embedding_size": 8, **_TWO_STAGES, "layer_type": "basic"}),
    "SegformerForImageClassification": ("SegformerConfig", _SEGFORMER),
    "SiglipForImageClassification": ("SiglipConfig", {"vision_config": _TRANSFORMER}),
    "Siglip2ForImageClassification": ("Siglip2Config", {"vision_config": _SIGLIP2}),
    "SwiftFormerForImageClassification": (
        "SwiftFormerConfig",
        {"image_size": IMAGE_SIZE, "depths": [1, 1, 1, 1], "embed_dims": [8, 8, 8, 16], "mlp_ratio": 2},
    ),
    "SwinForImageClassification": ("SwinConfig", _WINDOWS),
    "Swinv2ForImageClassification": ("Swinv2Config", _WINDOWS),
    "TextNetForImageClassification": ("TextNetConfig", _TEXTNET),
    "ViTForImageClassification": ("ViTConfig", _TRANSFORMER),
    "ViTMSNForImageClassification": ("ViTMSNConfig", _TRANSFORMER),
}
# Older versions of transformers lack some.
EVERY = {name: entry for name, entry in EVERY.items() if all(hasattr(transformers, part) for part in (name, entry[0]))}
TWO_HEADS = [
    "DeiTForImageClassificationWithTeacher",
    "LevitForImageClassificationWithTeacher",
    "SwiftFormerForImageClassification",
]

# Short names of the classes that every property of a model is tested with.
_CLASSES = {
    "vit": "ViTForImageClassification",
    "deit": "DeiTForImageClassification",
    "swin": "SwinForImageClassification",
    "swinv2": "Swinv2ForImageClassification",
    "resnet": "ResNetForImageClassification",
    "convnext": "ConvNextForImageClassification",
    "beit": "BeitForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
}
KINDS = list(_CLASSES)
HEAD_PATHS = {kind: "classifier.1" if kind == "resnet" else "classifier" for kind in KINDS}
FEATURES = {kind: 32 if kind == "dinov2" else 16 for kind in KINDS}  # DINOv2 joins the class token and a mean


def tiny_base(kind: str, num_labels: int = 10) -> PreTrainedModel:
    """Random model of ``kind``, a short name or a class of :data:`EVERY`, in evaluation mode."""
    class_name = _CLASSES.get(kind, kind)
    config_name, settings = EVERY[class_name]
    config = getattr(transformers, config_name)(**copy.deepcopy(settings))
    config.num_labels = num_labels
    model: PreTrainedModel = getattr(transformers, class_name)(config)
    return model.eval()


def tiny_inputs(class_name: str, count: int = 4) -> dict[str, Tensor]:
    """Random inputs of a class of :data:`EVERY`, under the names it gives them, the same in every call."""
    draw = torch.Generator().manual_seed(0)
    if class_name.startswith("ImageGPT"):
        return {"input_ids": torch.randint(0, 16, (count, 64), generator=draw)}
    if class_name.startswith("Siglip2"):
        return {
            "pixel_values": torch.randn(count, 16, 3 * 8 * 8, generator=draw),
            "pixel_attention_mask": torch.ones(count, 16, dtype=torch.int64),
            "spatial_shapes": torch.tensor([[4, 4]] * count),
        }
    if class_name.startswith("Perceiver"):
        side = 16 if class_name.endswith("Learned") else 224  # the others know no other size
        return {"inputs": torch.randn(count, 3, side, side, generator=draw)}
    side = 64 if class_name.startswith(("Levit", "MobileViTV2")) else IMAGE_SIZE
    return {"pixel_values": torch.randn(count, 3, side, side, generator=draw)}
