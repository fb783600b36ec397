"""Features: the inputs of a model's classifier, or of other modules."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from calor_hf.core.finite import check_rows_finite
from calor_hf.core.outputs import LOSS_INPUTS
from calor_hf.heads.find_head import put_back_heads, take_out_heads


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
    """(samples, width) float32 on the CPU: what ``read`` takes out of the outputs of ``model``, in evaluation mode.

    Args:
        model: Any model; left in the mode it was in.
        batches: Each a tensor of the model's main input, or a dictionary of inputs; labels and identities are left out.
        read: Takes a (batch, width) tensor out of an output.

    Raises:
        ValueError: ``batches`` is empty.
        FloatingPointError: numbers that are not finite.
    """
    found: list[Tensor] = []
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    training = model.training
    model.train(False)
    try:
        for batch in batches:
            inputs = {model.main_input_name: batch} if isinstance(batch, Tensor) else batch
            inputs = {name: value.to(device) for name, value in inputs.items() if name not in LOSS_INPUTS}
            # To the CPU at once, so that the device holds the features of one batch.
            found.append(read(model(**inputs, return_dict=True)).float().cpu())
    finally:
        model.train(training)
    if not found:
        raise ValueError("no images to compute features of; pass a tensor of pixel values or batches of them")
    result = torch.cat(found)
    check_rows_finite(result, "features")
    return result


def head_inputs(
    model: PreTrainedModel, head_paths: Sequence[str], batches: Iterable[Tensor | Mapping[str, Any]]
) -> Tensor:
    """(samples, features) float32 on the CPU: inputs of the classifiers at ``head_paths``, side by side.

    ``batches`` and errors are those of :func:`collect`; the model is left as it was.
    """
    heads = take_out_heads(model, head_paths)
    try:
        return collect(model, batches, scores_of)
    finally:
        put_back_heads(model, head_paths, heads)


def run_with_feature_hooks(model: nn.Module, paths: Sequence[str], **inputs: Any) -> tuple[Any, tuple[Tensor, ...]]:
    """Output of ``model(**inputs)``, and the inputs of the modules at ``paths``, one row per sample.

    The first axis of the first tensor in ``inputs`` is the batch.

    Returns:
        The output; for each path (batch, values), attached to the graph: axes after the batch side by side, and the
        windows or patches of an image too, if a model lays them along the first axis, image after image.

    Raises:
        ValueError: a module did not run, its input is no tensor with rows for each sample, or carries no gradient.
    """
    found: dict[str, Tensor] = {}

    def keep(path: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        value = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        if value is not None:
            found[path] = value

    modules = [(partial(keep, path), model.get_submodule(path)) for path in paths]
    # With keyword arguments, as a model may pass the tensor by name.
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for hook, module in modules]
    try:
        outputs = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    batch = next(len(value) for value in inputs.values() if isinstance(value, Tensor))
    for path in paths:
        value = found.get(path)
        if value is None or value.shape[0] % batch:
            shape = "none" if value is None else f"one of shape {tuple(value.shape)}"
            raise ValueError(
                f"expected the module {path!r} to read a tensor with rows for each of {batch} images, got {shape}; "
                "name another layer"
            )
        if torch.is_grad_enabled() and not value.requires_grad:
            raise ValueError(
                f"no gradient flows through the input of {path!r}: a frozen layer, or gradient checkpointing in its "
                "reentrant form; pass gradient_checkpointing_kwargs={'use_reentrant': False}, or name another layer"
            )
    # Windows of one image follow each other along the first axis, so a row takes all of them.
    return outputs, tuple(found[path].reshape(batch, -1) for path in paths)
