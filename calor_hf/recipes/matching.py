"""Tune the strength of a defense to a given accuracy."""

from collections.abc import Callable
from dataclasses import dataclass

from calor_hf.defenses.base import Strength


@dataclass(frozen=True)
class Trial:
    """Result of one tried strength.

    Attributes:
        share: Between the weakest (0) and the strongest (1) value.
        value: Value of the setting.
        accuracy: Validation accuracy in [0, 1], or None if training failed.
    """

    share: float
    value: float
    accuracy: float | None


def match_strength(
    strength: Strength, start: float, accuracy_of: Callable[[float], float | None], target: float, tolerance: float,
    trials: int,
) -> list[Trial]:  # fmt: skip
    """Try strengths until one gives the target accuracy; accuracy is taken to fall with strength.

    While all trials are too weak (or all too strong), the next one lies halfway to the end of the range, and the one
    after that at the end. Between a trial that is too weak and one that is too strong, the next value is a linear
    interpolation, limited to the middle two fifths of the bracket because accuracy often falls abruptly. A training
    that fails counts as too strong.

    Args:
        strength: The setting and its range.
        start: Value tried first; brought into the range.
        accuracy_of: Trains with a value and returns the validation accuracy in [0, 1], or None if training failed.
        target: Accuracy to reach.
        tolerance: Largest difference that counts as reached.
        trials: Maximum number of values, >= 1.

    Returns:
        The trials, in order.
    """
    found: list[Trial] = []
    low: Trial | None = None  # too weak: accuracy above the target
    high: Trial | None = None  # too strong
    share = min(1.0, max(0.0, strength.share_of(start)))
    while len(found) < trials:
        value = strength.at(share)
        if value in [trial.value for trial in found]:
            break  # whole numbers: there is nothing in between
        accuracy = accuracy_of(value)
        found.append(Trial(share, value, accuracy))
        if accuracy is not None and abs(accuracy - target) <= tolerance:
            break
        if accuracy is not None and accuracy > target:
            low = found[-1]
        else:
            high = found[-1]
        left, right = (low.share if low else 0.0), (high.share if high else 1.0)
        part = 0.5
        if len(found) == 2 and not (low and high):
            part = 1.0 if low else 0.0
        elif low and high and low.accuracy is not None and high.accuracy is not None and low.accuracy > high.accuracy:
            part = min(0.7, max(0.3, (low.accuracy - target) / (low.accuracy - high.accuracy)))
        share = left + part * (right - left)
    return found


def best_trial(trials: list[Trial], target: float) -> Trial | None:
    """Return the trial nearest to the target accuracy, the strongest of equal ones; None if all failed."""
    done = [trial for trial in trials if trial.accuracy is not None]
    return min(done, key=lambda t: (round(abs((t.accuracy or 0.0) - target), 9), -t.share), default=None)
