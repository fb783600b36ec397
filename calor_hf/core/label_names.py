"""Class names: those that say nothing, those that may be people's, and the same classes in another order."""

import difflib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

logger = logging.getLogger(__name__)

_GENERATED = re.compile(r"((?:label|class|identity|person)[ _-]?)?([0-9]+)", re.IGNORECASE)


def telling_names(names: Iterable[str]) -> list[str]:
    """Return the class names that may name people, so all but those that count the classes.

    These are all numbers from 0 or 1 on without a gap; and ``LABEL_7``, ``class 7``, ``person 7`` or ``identity_007``
    with a number of at most the number of classes. Other numbers may be of patients, telephones or passports.
    """
    names = [str(name) for name in names]
    found = {name: match for name in names if (match := _GENERATED.fullmatch(name))}
    numbers = sorted(int(name) for name, match in found.items() if match[1] is None)
    counted = numbers in ([*range(len(names))], [*range(1, len(names) + 1)])

    def says_nothing(name: str) -> bool:
        match = found.get(name)
        return match is not None and (counted if match[1] is None else int(match[2]) <= len(names))

    return [name for name in names if not says_nothing(name)]


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


def class_number(name: str, class_names: Sequence[str]) -> int:
    """Return the number of the class with this name.

    Raises:
        ValueError: no class or several have it; the message suggests the nearest name.
    """
    found = [number for number, one in enumerate(class_names) if one == name]
    if len(found) > 1:
        raise ValueError(f"the classes {found} are all named {name!r}; pass numbers")
    if not found:
        near = difflib.get_close_matches(name, class_names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"expected classes as 0-99 or 3,7,9, or by the model's names of them, got {name!r}{hint}")
    return found[0]


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name in (str(index), f"LABEL_{index}") for index, name in enumerate(names))


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
