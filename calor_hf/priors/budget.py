"""Size of a prior's training that this machine finishes within a budget of minutes, found by timed steps."""

import io
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from calor_hf.core.files import read_json
from calor_hf.priors._loop import train_prior
from calor_hf.priors.base import PriorConfig, PriorTraining
from calor_hf.priors.folder import RECORD
from calor_hf.targets.base import Target

STEPS = 3000
"""Steps that a larger size has to be allowed: as many as turn blotches into faces."""
TIMED = 4


def chosen_settings(kind: type[PriorTraining[Any]]) -> list[str]:
    """Names of the settings that a budget of minutes chooses."""
    return [*dict.fromkeys(name for size in kind.sizes for name in size), "steps"]


def time_step(
    training: PriorTraining[Any], images: Dataset[Tensor], target: Target | None, folder: str | Path
) -> float:
    """Return the seconds of a step, from trainings of few steps, which leave the files of a prior in ``folder``."""
    seconds = []
    for steps in (1, 1, 1 + TIMED):  # the first one warms up
        with redirect_stderr(io.StringIO()):  # no progress bars
            short = type(training)(replace(training.config, steps=steps))
            train_prior(short, images, folder, target=target, overwrite=True)
        seconds.append(read_json(Path(folder) / RECORD, {"seconds": float})["seconds"])
    return float(max(seconds[-1] - seconds[1], 1e-6)) / TIMED


def size_for(
    kind: type[PriorTraining[Any]], given: Mapping[str, Any], minutes: float, images: Dataset[Tensor],
    target: Target | None = None,
) -> tuple[PriorConfig, str]:  # fmt: skip
    """Choose the largest size that takes enough steps in ``minutes`` on this machine.

    Args:
        kind: Training of the prior.
        given: Settings that are kept as they are.
        minutes: Budget of the training, without the timing (at most a few percent of it).
        images: Public images.
        target: The model under attack, for the priors that ask it.

    Returns:
        The settings, and a sentence that says what was chosen and, if that is known, which samples to expect.

    Raises:
        ValueError: the ``steps`` in ``given`` take longer than ``minutes``, or settings or images that do not fit.
    """
    found: tuple[PriorConfig, float] | None = None
    for size in kind.sizes:
        config: PriorConfig = kind.config_class.from_dict({**size, **given})
        if found and len(images) < config.batch_size * kind.batches_per_update:  # type: ignore[arg-type]
            break
        with tempfile.TemporaryDirectory() as folder:
            seconds = time_step(kind(config), images, target, folder)
        if found and 60 * minutes < seconds * given.get("steps", STEPS):
            break
        found = config, seconds
    assert found is not None  # there are sizes
    config, seconds = found
    steps = int(60 * minutes / seconds)
    wanted = given.get("steps", min(config.steps, max(steps, 1)))
    if wanted > steps:
        raise ValueError(
            f"{wanted:,} steps of the smallest size take {wanted * seconds / 60:.2g} minutes here, and --minutes is "
            f"{minutes:g}; pass more minutes, or fewer steps"
        )
    config = replace(config, steps=wanted)
    expected = next((f"; expect {text}" for least, text in reversed(kind.expected) if wanted >= least), "")
    settings = " ".join(f"{name}={getattr(config, name)}" for name in chosen_settings(kind))
    return config, f"{settings}, about {wanted * seconds / 60:.2g} minutes at {seconds:.2g} s a step{expected}"
