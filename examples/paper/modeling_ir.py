"""Improved residual networks (IR): the paper's target (IR-152, 64 pixels) and evaluation model (IR-50, 112 pixels)."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from examples.paper.configuration_ir import IRConfig


class IRUnit(nn.Module):
    """Residual unit: shortcut plus BN-conv-PReLU-conv-BN, whose second convolution has the stride."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        # The shortcut comes first, and is a module even if it only subsamples, so that defenses that count layers
        # (transfer, bido) count as on the published networks.
        self.shortcut: nn.Module = (
            nn.MaxPool2d(1, stride)
            if in_channels == channels
            else nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
        )
        self.residual = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False),
            nn.PReLU(channels),
            nn.Conv2d(channels, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, side, side) to (batch, channels, side / stride, side / stride)."""
        total: Tensor = self.residual(x) + self.shortcut(x)
        return total


class IRNetwork(nn.Module):
    """Network from images to embeddings.

    Args:
        config: Configuration.
    """

    def __init__(self, config: IRConfig) -> None:
        super().__init__()
        first, last = config.hidden_sizes[0], config.hidden_sizes[-1]
        self.stem = nn.Sequential(
            nn.Conv2d(config.num_channels, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.PReLU(first)
        )
        units: list[nn.Module] = []
        width = first
        for depth, channels in zip(config.depths, config.hidden_sizes, strict=True):
            units.append(IRUnit(width, channels, stride=2))
            units += [IRUnit(channels, channels, stride=1) for _ in range(depth - 1)]
            width = channels
        self.units = nn.ModuleList(units)
        self.embedding = nn.Sequential(
            nn.BatchNorm2d(last),
            nn.Dropout(config.dropout),
            nn.Flatten(),
            nn.Linear(last * config.last_side**2, config.embedding_size),
            nn.BatchNorm1d(config.embedding_size),
        )

    def forward(self, pixel_values: Tensor, seen: list[Tensor] | None = None) -> Tensor:
        """Return (batch, embedding_size); append the maps after the stem and after each unit to ``seen``."""
        maps: Tensor = self.stem(pixel_values)
        if seen is not None:
            seen.append(maps)
        for unit in self.units:
            maps = unit(maps)
            if seen is not None:
                seen.append(maps)
        embedding: Tensor = self.embedding(maps)
        return embedding


class IRForImageClassification(PreTrainedModel):
    """IR network with a linear classifier on its embedding.

    The order of the layers is that of the target network in the KED and MIBench code: stem, units, embedding,
    classifier. So is the initialization (Xavier).

    Source:
        Deng et al., "ArcFace", CVPR 2019, arXiv:1801.07698, section 3.2 (the improved residual unit);
        ZhaoJ9014/face.evoLVe `backbone/model_irse.py`. Its weights: :mod:`examples.paper.convert_ir`.
    """

    config_class = IRConfig
    config: IRConfig
    main_input_name = "pixel_values"
    base_model_prefix = "network"

    def __init__(self, config: IRConfig) -> None:
        super().__init__(config)
        self.network = IRNetwork(config)
        self.classifier = nn.Linear(config.embedding_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput | tuple[Any, ...]:
        """Return logits and, with labels, the loss.

        Args:
            pixel_values: (batch, num_channels, image_size, image_size).
            labels: (batch,) int64 in [0, num_labels).
            output_hidden_states: Whether to return the maps after the stem and after each unit too.
            return_dict: Whether to return an object instead of a tuple.
            kwargs: Arguments of the loss function.

        Raises:
            ValueError: images of another size or number of channels.
        """
        c = self.config
        if tuple(pixel_values.shape[1:]) != (c.num_channels, c.image_size, c.image_size):
            raise ValueError(
                f"expected images of {c.num_channels} x {c.image_size} x {c.image_size}, got "
                f"{' x '.join(map(str, pixel_values.shape[1:]))}; resize them (the image processor does)"
            )
        shown = output_hidden_states if output_hidden_states is not None else c.output_hidden_states
        maps: list[Tensor] | None = [] if shown else None
        logits = self.classifier(self.network(pixel_values, maps))
        loss = None if labels is None else self.loss_function(labels, logits, c, **kwargs)
        output = ImageClassifierOutput(loss=loss, logits=logits, hidden_states=None if maps is None else tuple(maps))
        return output if (c.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.PReLU):
            nn.init.constant_(module.weight, 0.25)
        else:
            super()._init_weights(module)
