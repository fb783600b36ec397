"""What a defense is told about the training run it is part of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PixelScale:
    """Between pixels in [0, 1] and what the model reads.

    Attributes:
        mean: One value a channel, subtracted from pixels.
        std: One value a channel, by which the difference is divided.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any) -> "PixelScale | None":
        """Scale of an image processor; None where it says nothing of one."""
        if processor is None or not hasattr(processor, "do_normalize"):
            return None
        if not processor.do_normalize:
            return cls((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        return cls(tuple(processor.image_mean), tuple(processor.image_std))

    def to_pixels(self, inputs: Tensor) -> Tensor:
        """(batch, 3, height, width) in [0, 1] from model inputs."""
        return inputs * self._channels(self.std, inputs) + self._channels(self.mean, inputs)

    def to_inputs(self, pixels: Tensor) -> Tensor:
        """Model inputs from (batch, 3, height, width) in [0, 1]."""
        return (pixels - self._channels(self.mean, pixels)) / self._channels(self.std, pixels)

    @staticmethod
    def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)


@dataclass(frozen=True)
class TrainingRun:
    """What a defense that acts on batches may use.

    Attributes:
        model: The defended model, without wrappers of distributed training; (inputs) to an output with logits.
        scale: Between pixels and model inputs, or None where the trainer has no image processor.
        seed: Of the run.
        make_optimizer: Gives an optimizer like the model's for other parameters, with the model's settings.
        learning_rate: Gives the learning rate of the step that comes.
        sum_over_processes: Adds up a tensor over all processes.
        processes: Number of processes.
    """

    model: Any
    scale: PixelScale | None
    seed: int
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    learning_rate: Callable[[], float]
    sum_over_processes: Callable[[Tensor], Tensor]
    processes: int = 1

    def pixel_scale(self, defense: str) -> PixelScale:
        """The scale.

        Raises:
            ValueError: the trainer has no image processor, which knows it.
        """
        if self.scale is None:
            raise ValueError(
                f"{defense} works on pixels in [0, 1], and the trainer does not know how the images were normalized; "
                "pass processing_class=the model's image processor to the trainer"
            )
        return self.scale


def check_images(inputs: dict[str, Any], defense: str) -> Tensor:
    """(batch, 3, height, width) images of a batch.

    Raises:
        ValueError: the model reads something else.
    """
    images = inputs.get("pixel_values")
    if not isinstance(images, Tensor) or images.ndim != 4:
        shape = tuple(images.shape) if isinstance(images, Tensor) else ", ".join(sorted(set(inputs) - {"labels"}))
        raise ValueError(
            f"{defense} changes images, and needs pixel_values (batch, channels, height, width); this model reads "
            f"{shape}: choose another defense or another base model"
        )
    return images
