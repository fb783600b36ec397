"""Any network as a target."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from calor_hf.data.pixel_input import PixelInput
from calor_hf.targets.base import Target


class ModuleTarget(Target):
    """Any ``nn.Module`` from images to (batch, classes) logits.

    Args:
        module: The network; put into evaluation mode.
        num_classes: Number of classes.
        image_size: Side, or height and width, in pixels.
        mean: Mean of each channel of images in [0, 1]; the network's input is (image - mean) / std.
        std: Standard deviation of each channel.
        head: Path of the layer that gives the logits, whose input are the features. None means that there are only
            logits.
        resize: Whether to resize other images to ``image_size``, as a whole, instead of an error. The network has to
            see faces framed as those it learned: an imported FFHQ generator needs its ``crop`` for that.

    Raises:
        ValueError: ``head`` is no path in ``module``.
    """

    def __init__(
        self, module: nn.Module, num_classes: int, image_size: int | tuple[int, int],
        mean: Sequence[float] = (0.0, 0.0, 0.0), std: Sequence[float] = (1.0, 1.0, 1.0), head: str | None = None,
        resize: bool = False,
    ) -> None:  # fmt: skip
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.module = module.eval()
        self.num_classes = num_classes
        self.image_size = size
        self.resizes = resize
        self.pixel_input = PixelInput(size, size if resize else None, mean=tuple(mean), std=tuple(std))
        modules = dict(module.named_modules())
        if head is not None and head not in modules:
            raise ValueError(f"{type(module).__name__} has no module {head!r}; pass one of {', '.join(modules)[:300]}")
        self._head = None if head is None else modules[head]
        self.head: Callable[[Tensor], Tensor] = self._head if self._head is not None else lambda x: x

    def features(self, images: Tensor) -> Tensor:
        """(batch, features) inputs of the head; the logits if no head was named."""
        x = self.pixel_input(images)
        if self._head is None:
            logits: Tensor = self.module(x)
            return logits
        found: list[Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
            found.append(args[0])

        handle = self._head.register_forward_pre_hook(keep)
        try:
            self.module(x)
        finally:
            handle.remove()
        return found[-1].flatten(1) if isinstance(self._head, nn.Linear) else found[-1]
