"""Class names: those that say nothing, those that may be people's, and the same classes in another order."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

logger = logging.getLogger(__name__)

# Numbers, with or without one of these words: no one is called so.
_SAYS_NOTHING = re.compile(r"(label|class|identity|person|id|n|s)?[ _-]?\d+", re.IGNORECASE)


def telling_names(names: Iterable[str]) -> list[str]:
    """Those of the class names that are more than numbers, and may name people."""
    return [name for name in names if not _SAYS_NOTHING.fullmatch(str(name))]


def numbered(id2label: Mapping[Any, Any]) -> dict[int, str]:
    """The same classes with numbers instead of names."""
    return {int(index): f"LABEL_{int(index)}" for index in id2label}


def class_order(names: Sequence[str], wanted: Sequence[str], whose: str) -> list[int] | None:
    """Return the position of each of the ``wanted`` classes among ``names``, or None for the same order.

    Numbers and the default names of transformers (``LABEL_0`` …), in their order, say nothing about a class: then
    classes correspond by number.

    Args:
        names: Class names of data, a network or a prior.
        wanted: Class names of the target.
        whose: Owner of ``names``, for errors.

    Raises:
        ValueError: other classes, or a name twice.
    """
    names, wanted = list(map(str, names)), list(map(str, wanted))
    if len(names) != len(wanted):
        raise ValueError(
            f"{whose} has {len(names)} classes, the target {len(wanted)}; pass what belongs to the same classes"
        )
    if names == wanted:
        return None
    if _are_numbers(names) or _are_numbers(wanted):
        if not (_are_numbers(names) and _are_numbers(wanted)):
            logger.warning("the classes of %s and of the target correspond by number: one side has no names", whose)
        return None
    index = {name: number for number, name in enumerate(names)}
    if lacking := [name for name in wanted if name not in index]:
        more = [name for name in names if name not in wanted]
        raise ValueError(
            f"{whose} has other classes than the target: it lacks {_some(lacking)} and has {_some(more)} instead; pass "
            "what belongs to the same classes"
        )
    if len(index) < len(names) or len(set(wanted)) < len(wanted):
        raise ValueError(f"{whose} or the target has a class name twice, so classes cannot be matched; rename one")
    return [index[name] for name in wanted]


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name in (str(index), f"LABEL_{index}") for index, name in enumerate(names))


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
