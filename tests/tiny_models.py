"""Random image classifiers of every kind that the tests use: 32x32 images, thousands of weights, made in a moment."""

from collections.abc import Callable

from transformers import (
    BeitConfig,
    BeitForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    Swinv2Config,
    Swinv2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

IMAGE_SIZE = 32
TRANSFORMER = {
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
WINDOWS = {
    "image_size": IMAGE_SIZE,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 4,
}


def vit(num_labels: int) -> PreTrainedModel:
    return ViTForImageClassification(ViTConfig(**TRANSFORMER, num_labels=num_labels))


def deit(num_labels: int) -> PreTrainedModel:
    return DeiTForImageClassification(DeiTConfig(**TRANSFORMER, num_labels=num_labels))


def deit_teacher(num_labels: int) -> PreTrainedModel:
    return DeiTForImageClassificationWithTeacher(DeiTConfig(**TRANSFORMER, num_labels=num_labels))


def swin(num_labels: int) -> PreTrainedModel:
    return SwinForImageClassification(SwinConfig(**WINDOWS, num_labels=num_labels))


def swinv2(num_labels: int) -> PreTrainedModel:
    return Swinv2ForImageClassification(Swinv2Config(**WINDOWS, num_labels=num_labels))


def resnet(num_labels: int) -> PreTrainedModel:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    config.num_labels = num_labels
    return ResNetForImageClassification(config)


def convnext(num_labels: int) -> PreTrainedModel:
    config = ConvNextConfig(image_size=IMAGE_SIZE, num_stages=2, hidden_sizes=[8, 16], depths=[1, 1])
    config.num_labels = num_labels
    return ConvNextForImageClassification(config)


def beit(num_labels: int) -> PreTrainedModel:
    return BeitForImageClassification(BeitConfig(**TRANSFORMER, num_labels=num_labels))


def dinov2(num_labels: int) -> PreTrainedModel:
    return Dinov2ForImageClassification(Dinov2Config(**TRANSFORMER, mlp_ratio=2, num_labels=num_labels))


BUILDERS: dict[str, Callable[[int], PreTrainedModel]] = {
    "vit": vit,
    "deit": deit,
    "swin": swin,
    "swinv2": swinv2,
    "resnet": resnet,
    "convnext": convnext,
    "beit": beit,
    "dinov2": dinov2,
    "deit_teacher": deit_teacher,  # two heads: refused
}
KINDS = [kind for kind in BUILDERS if kind != "deit_teacher"]
HEAD_PATHS = {kind: "classifier.1" if kind == "resnet" else "classifier" for kind in KINDS}
FEATURES = {kind: 32 if kind == "dinov2" else 16 for kind in KINDS}  # DINOv2 joins the class token and a mean


def tiny_base(kind: str, num_labels: int = 10) -> PreTrainedModel:
    """Random model of ``kind`` in evaluation mode, drawn from torch's global generator."""
    return BUILDERS[kind](num_labels).eval()
