"""Context manager that freezes networks."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Put ``modules`` in evaluation mode without weight gradients, and restore them afterwards.

    A gradient with respect to the input costs a third less without those of the weights.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    weights = [(weight, weight.requires_grad) for module in modules for weight in module.parameters()]
    try:
        for module in modules:
            module.eval()
        for weight, _ in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for part, training in modes:
            part.training = training
        for weight, learns in weights:
            weight.requires_grad_(learns)
