"""What a model's classifier reads."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from calor_hf.layers.find_head import put_back_heads, take_out_heads


def scores_of(outputs: Any) -> Tensor:
    """(batch, classes) scores in the output of an image classification model, whatever it calls them.

    PPLCNet returns its scores as ``last_hidden_state``; every other model of transformers as ``logits``. With its
    classifiers taken out, a model returns the features here.
    """
    scores = outputs["logits"] if "logits" in outputs else outputs["last_hidden_state"]
    return cast(Tensor, scores.flatten(1))  # a 1x1 convolution gives (batch, classes, 1, 1)


@torch.no_grad()
def collect(
    model: PreTrainedModel, batches: Iterable[Tensor | Mapping[str, Any]], read: Callable[[Any], Tensor]
) -> Tensor:
    """What ``read`` finds in the outputs of ``model`` over ``batches``, in evaluation mode.

    Args:
        model: Any model; left in the mode it was in.
        batches: Each a tensor of the model's main input, or a dictionary of inputs; ``labels`` are left out.
        read: Takes a (batch, width) tensor out of an output.

    Returns:
        (samples, width) float32 on the CPU.

    Raises:
        ValueError: ``batches`` is empty.
    """
    found: list[Tensor] = []
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    training = model.training
    model.train(False)
    try:
        for batch in batches:
            inputs = {model.main_input_name: batch} if isinstance(batch, Tensor) else batch
            inputs = {name: value.to(device) for name, value in inputs.items() if name != "labels"}
            found.append(read(model(**inputs, return_dict=True)).float().cpu())
    finally:
        model.train(training)
    if not found:
        raise ValueError("no images to compute features of; pass a tensor of pixel values or batches of them")
    return torch.cat(found)


def head_inputs(
    model: PreTrainedModel, head_paths: Sequence[str], batches: Iterable[Tensor | Mapping[str, Any]]
) -> Tensor:
    """Inputs of the classifiers at ``head_paths`` over ``batches``, in evaluation mode.

    Args:
        model: Any image classification model; left as it was.
        head_paths: Module paths of its classifiers, as :func:`~calor_hf.layers.find_head.find_heads` gives them.
        batches: As for :func:`collect`.

    Returns:
        (samples, features) float32 on the CPU; of several classifiers side by side.

    Raises:
        ValueError: ``batches`` is empty.
    """
    heads = take_out_heads(model, head_paths)
    try:
        return collect(model, batches, scores_of)
    finally:
        put_back_heads(model, head_paths, heads)
