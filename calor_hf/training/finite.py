"""What a run is stopped by whose numbers are no longer finite."""

from collections.abc import Iterable
from itertools import chain

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from calor_hf.training.checkpoints import complete_checkpoints


class NonFiniteLossError(FloatingPointError):
    """The loss, or a weight, became NaN or infinite."""


def not_finite(what: str, stage: str, output_dir: str) -> NonFiniteLossError:
    """The error that says what is not finite, what was saved before, and what to do."""
    found = complete_checkpoints(output_dir)
    kept = f"the last good checkpoint is {found[-1]}" if found else "no checkpoint had been saved"
    return NonFiniteLossError(
        f"{what} (stage '{stage}'); {kept}. Lower the learning rate, prefer bf16 to fp16, and look for images or "
        "weights with NaN, and for batches whose labels are all ignored"
    )


def bad_weight(model: nn.Module, batch_norms: Iterable[_BatchNorm] = ()) -> str | None:
    """Name of a learning weight, or statistic of ``batch_norms``, that holds NaN or infinity; None: there is none."""
    weights = (pair for pair in model.named_parameters() if pair[1].requires_grad)
    statistics = ((f"a batch norm's {name}", value) for norm in batch_norms for name, value in norm.named_buffers())
    return next((name for name, value in chain(weights, statistics) if not value.isfinite().all()), None)
