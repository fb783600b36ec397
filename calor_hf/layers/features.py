"""What a model's classifier reads."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


@torch.no_grad()
def head_inputs(model: PreTrainedModel, head_path: str, batches: Iterable[Tensor | Mapping[str, Any]]) -> Tensor:
    """Inputs of the layer at ``head_path`` over ``batches``, in evaluation mode.

    Args:
        model: Any model; left in the mode it was in.
        head_path: Module path of the layer.
        batches: Each a tensor of the model's main input, or a dictionary of inputs; ``labels`` are left out.

    Returns:
        (samples, features) float32 on the CPU.

    Raises:
        ValueError: ``batches`` is empty.
    """
    captured: list[Tensor] = []

    def capture(_: Any, inputs: tuple[Tensor, ...]) -> None:
        captured.append(inputs[0].detach().float().cpu())

    hook = model.get_submodule(head_path).register_forward_pre_hook(capture)
    training = model.training
    model.train(False)
    try:
        for batch in batches:
            inputs = {model.main_input_name: batch} if isinstance(batch, Tensor) else batch
            model(**{name: value.to(model.device) for name, value in inputs.items() if name != "labels"})
    finally:
        hook.remove()
        model.train(training)
    if not captured:
        raise ValueError("no images to compute features of; pass a tensor of pixel values or batches of them")
    return torch.cat(captured)
