"""Which adapted checkpoint is the result: a pure function of the training log, so a resumed run decides alike."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """A checkpoint as the rule sees it.

    Attributes:
        step: Optimizer steps done.
        accuracy: On the validation split, in [0, 1].
        confidence: Mean probability of the true class over correctly classified training images, in [0, 1].
    """

    step: int
    accuracy: float
    confidence: float


@dataclass(frozen=True)
class Selection:
    """What the rule says so far.

    Attributes:
        reference: End of the first stage, or None before it.
        candidates: Checkpoints of the adapt stage, in order.
        best: The result as it stands, or None if no candidate keeps the accuracy.
        finished: Whether to stop adapting.
        budget: Accuracy that adapting may cost, in [0, 1].
    """

    reference: Candidate | None
    candidates: tuple[Candidate, ...]
    best: Candidate | None
    finished: bool
    budget: float


def select_adapted(
    history: Sequence[dict[str, Any]],
    reference_step: int,
    candidate_steps: Sequence[int],
    target: float,
    tolerance: float,
    max_accuracy_drop: float,
    validation_samples: int,
) -> Selection:
    """Apply the rule to a training log.

    The result is the candidate whose confidence is closest to ``target`` among those whose validation accuracy is
    within ``max(max_accuracy_drop, one standard error)`` of the end of the first stage; candidates within
    ``tolerance`` of the target count as at it, and the most accurate of them wins.

    Accuracy dips in the first epoch of adapting and mostly comes back, so adapting stops when the result is at the
    target and as accurate as before; when the last three candidates kept the accuracy but brought no better result;
    or when they all lost too much and it gets worse.

    Args:
        history: ``trainer.state.log_history``: entries with ``step``, and ``eval_accuracy`` or
            ``train_confidence_correct``.
        reference_step: Step at which the first stage ended.
        candidate_steps: Steps whose checkpoints may be chosen; evaluations at other steps do not count.
        target: Confidence e^(−1/b).
        tolerance: Distance to the target that counts as none.
        max_accuracy_drop: In points (hundredths).
        validation_samples: Size of the validation split, for the standard error.
    """
    merged: dict[int, dict[str, Any]] = {}
    for entry in history:
        merged.setdefault(int(entry.get("step", -1)), {}).update(entry)
    reference = _candidate(merged, reference_step)
    candidates = tuple(c for c in (_candidate(merged, step) for step in candidate_steps) if c is not None)
    if reference is None:
        return Selection(None, (), None, finished=False, budget=max_accuracy_drop / 100)

    error = math.sqrt(reference.accuracy * (1 - reference.accuracy) / max(1, validation_samples))
    budget = max(max_accuracy_drop / 100, error)
    kept = [c for c in candidates if c.accuracy >= reference.accuracy - budget - 1e-9]

    def badness(candidate: Candidate) -> tuple[float, float, float]:
        distance = abs(candidate.confidence - target)
        return max(0.0, distance - tolerance), -candidate.accuracy, distance

    best = min(kept, key=badness, default=None)
    recent = candidates[-3:]
    if not any(c in kept for c in recent):
        finished = len(recent) == 3 and recent[-1].accuracy < recent[0].accuracy
    else:
        reached = best is not None and badness(best)[0] == 0 and best.accuracy >= reference.accuracy
        finished = reached or best not in recent
    return Selection(reference, candidates, best, finished, budget)


def _candidate(merged: dict[int, dict[str, Any]], step: int) -> Candidate | None:
    entry = merged.get(step, {})
    if "eval_accuracy" not in entry or "train_confidence_correct" not in entry:
        return None
    confidence = float(entry["train_confidence_correct"])
    return Candidate(step, float(entry["eval_accuracy"]), 0.0 if math.isnan(confidence) else confidence)
