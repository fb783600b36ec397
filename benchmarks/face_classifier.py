"""A strong face network (MobileFaceNet A), frozen or not, as an image classifier of transformers."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
    ViTImageProcessor,
)
from transformers.modeling_outputs import ImageClassifierOutput

from benchmarks.mobilefacenet import A, Embedding, fold, framed, network_a

SIDE, WIDTH = 64, 128


class FaceConfig(PretrainedConfig):
    """Configuration of :class:`FaceClassifier`.

    Args:
        feature_scale: Factor of the features, whose length is 2, in front of the classifier.
        feature_noise: Length of the noise that is added to the features in training.
        projection: Whether a linear layer that is trained, at first the identity, lies between features and classifier.
        frozen: Whether the network in front of them keeps its weights.
        kwargs: As for ``PretrainedConfig``.
    """

    model_type = "face_classifier"

    def __init__(
        self, feature_scale: float = 4.0, feature_noise: float = 1.5, projection: bool = False, frozen: bool = True,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self.feature_scale, self.feature_noise = feature_scale, feature_noise
        self.projection, self.frozen = projection, frozen


class FaceClassifier(PreTrainedModel):
    """MobileFaceNet whose batch norms are folded into its convolutions, and a linear classifier."""

    config_class = FaceConfig
    config: FaceConfig
    main_input_name = "pixel_values"
    base_model_prefix = ""

    def __init__(self, config: FaceConfig) -> None:
        super().__init__(config)
        self.body = network_a().eval().requires_grad_(not config.frozen)
        fold(self.body)
        self.projection = nn.Linear(WIDTH, WIDTH) if config.projection else nn.Identity()
        self.classifier = nn.Linear(WIDTH, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Random classifier; the projection changes nothing at first."""
        if module is self.classifier:
            module.reset_parameters()
        elif module is self.projection and isinstance(module, nn.Linear):
            nn.init.eye_(module.weight)
            nn.init.zeros_(module.bias)

    def train(self, mode: bool = True) -> "FaceClassifier":
        """As ``Module.train``; a frozen network stays so."""
        super().train(mode)
        self.body.eval().requires_grad_(not self.config.frozen)  # from_pretrained frees all weights
        return self

    def features(self, pixel_values: Tensor) -> Tensor:
        """(batch, 128) features of length 2, from (batch, 3, 64, 64) in [-1, 1], or the features as they are."""
        if pixel_values[0].numel() == WIDTH:
            return pixel_values.flatten(1)
        x = (framed((pixel_values + 1) / 2, A[1]) - A[2][0]) / A[3][0]
        return 2 * F.normalize(self.body(x.to(memory_format=torch.channels_last)))

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None, **kwargs: Any
    ) -> ImageClassifierOutput | tuple[Any, ...]:
        """Scores, and with labels the cross-entropy.

        Args:
            pixel_values: (batch, 3, 64, 64) in [-1, 1]; or (batch, 128) or (batch, 128, 1, 1) features, which skip the
                frozen network, so that a head is trained in seconds.
            labels: (batch,) int64.
            return_dict: False gives a tuple.
            kwargs: Not read.
        """
        x = self.features(pixel_values)
        if self.training:
            x = x + self.config.feature_noise / WIDTH**0.5 * torch.randn_like(x)
        logits = self.classifier(self.projection(self.config.feature_scale * x))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        found = ImageClassifierOutput(loss=loss, logits=logits)
        return found if return_dict is not False else found.to_tuple()


AutoConfig.register(FaceConfig.model_type, FaceConfig, exist_ok=True)
AutoModelForImageClassification.register(FaceConfig, FaceClassifier, exist_ok=True)


def face_classifier(data: Path, classes: int, **settings: Any) -> FaceClassifier:
    """Network A with a random classifier; ``data`` holds the face sets."""
    model = FaceClassifier(FaceConfig(num_labels=classes, **settings))
    model.body.load_state_dict(Embedding(data, "A").net.state_dict())
    return model


def face_processor() -> ViTImageProcessor:
    """Image processor of the classifier: pixels in [-1, 1]."""
    size = {"height": SIDE, "width": SIDE}
    return ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
