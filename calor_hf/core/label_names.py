"""Class names that say nothing, and those that may be people's."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

# Numbers, with or without one of these words: no one is called so.
_SAYS_NOTHING = re.compile(r"(label|class|identity|person|id|n|s)?[ _-]?\d+", re.IGNORECASE)


def telling_names(names: Iterable[str]) -> list[str]:
    """Those of the class names that are more than numbers, and may name people."""
    return [name for name in names if not _SAYS_NOTHING.fullmatch(str(name))]


def numbered(id2label: Mapping[Any, Any]) -> dict[int, str]:
    """The same classes with numbers instead of names."""
    return {int(index): f"LABEL_{int(index)}" for index in id2label}
