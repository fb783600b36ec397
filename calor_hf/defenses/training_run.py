"""State of the training run that a defense may use."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calor_hf.data.pixel_input import PixelScale


@dataclass(frozen=True)
class TrainingRun:
    """State of the training run that a defense may use.

    Attributes:
        model: The defended model, without wrappers of distributed training; (inputs) to an output with logits.
        scale: Conversion between images in [0, 1] and model inputs; None if the trainer has no image processor.
        seed: Seed of the run.
        make_optimizer: Returns an optimizer like the model's, with its settings, for other parameters.
        learning_rate: Returns the learning rate of the next step.
        sum_over_processes: Adds up a tensor over all processes.
        log: Logs a scalar of the current training batch under a name.
        processes: Number of processes.
    """

    model: Any
    scale: PixelScale | None
    seed: int
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    learning_rate: Callable[[], float]
    sum_over_processes: Callable[[Tensor], Tensor]
    log: Callable[[str, Tensor], None]
    processes: int = 1

    def pixel_scale(self, defense: str) -> PixelScale:
        """Conversion between images in [0, 1] and model inputs.

        Raises:
            ValueError: the trainer has no image processor.
        """
        if self.scale is None:
            raise ValueError(
                f"{defense} works on pixels in [0, 1], and the trainer does not know how the images were normalized; "
                "pass processing_class=the model's image processor to the trainer"
            )
        return self.scale


def check_images(inputs: dict[str, Any], defense: str) -> Tensor:
    """Return the (batch, 3, height, width) images of a batch.

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
