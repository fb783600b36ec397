"""Configuration of an improved residual network (IR), the face networks of the paper's low-resolution tables."""

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

UNITS = {50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 152: (3, 8, 36, 3)}
"""Residual units of each stage, by the depth in a network's name."""


class IRConfig(PretrainedConfig):
    """Settings of :class:`~examples.paper.modeling_ir.IRForImageClassification`.

    Args:
        depths: Units of each stage; the first unit of a stage halves the side of the maps.
        hidden_sizes: Channels of each stage.
        image_size: Side of the images in pixels: the embedding reads all positions of the last maps.
        num_channels: Channels of the images.
        embedding_size: Width of the embedding, which the classifier reads.
        dropout: Dropout probability in front of the embedding, in [0, 1).
        kwargs: ``num_labels``, ``id2label``, ``label2id`` and other arguments of any configuration.
    """

    model_type = "ir_resnet"

    def __init__(
        self,
        depths: Sequence[int] = UNITS[50],
        hidden_sizes: Sequence[int] = (64, 128, 256, 512),
        image_size: int = 112,
        num_channels: int = 3,
        embedding_size: int = 512,
        dropout: float = 0.5,
        **kwargs: Any,
    ) -> None:
        if len(depths) != len(hidden_sizes) or not depths or min(*depths, *hidden_sizes) < 1:
            raise ValueError(
                f"depths and hidden_sizes must have the same length, with values >= 1; got {list(depths)} and "
                f"{list(hidden_sizes)}"
            )
        if min(image_size, num_channels, embedding_size) < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"image_size, num_channels and embedding_size must be >= 1 and dropout in [0, 1), got {image_size}, "
                f"{num_channels}, {embedding_size} and {dropout}"
            )
        self.depths = list(depths)
        self.hidden_sizes = list(hidden_sizes)
        self.image_size = image_size
        self.num_channels = num_channels
        self.embedding_size = embedding_size
        self.dropout = dropout
        super().__init__(**kwargs)

    @classmethod
    def of_depth(cls, depth: int, **settings: Any) -> "IRConfig":
        """Create the configuration of IR-50, IR-100 or IR-152.

        Args:
            depth: 50, 100 or 152.
            settings: Other arguments of the class.

        Raises:
            ValueError: unknown depth.
        """
        if depth not in UNITS:
            raise ValueError(f"depth must be one of {', '.join(map(str, UNITS))}, got {depth}; or pass depths=")
        return cls(depths=UNITS[depth], **settings)

    @property
    def last_side(self) -> int:
        """Side of the last stage's maps; each stage halves it, rounded up."""
        side = self.image_size
        for _ in self.depths:
            side = (side + 1) // 2
        return side
