"""Validation of plain values, such as settings and JSON, before they are used.

Each function returns a message, or None for a valid value, so that callers can say where the value came from.
"""

import re
import types
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin

MAX_SIZE, MAX_LAYERS = 2**22, 2**12
"""Largest integer in a model's configuration, and largest number of layers."""
MAX_DEPTH = 64
"""Maximum nesting of lists and objects."""
MAX_NUMBER = 1e100
"""Larger than anything that is measured or set, and far below the largest float."""
MAX_VALUES = 5_000_000
"""Maximum number of values in a file; YAML aliases can repeat a value many times."""
_LAYERS = re.compile("layers|depths|blocks|stages|num_conv")
_NAMES = {float: "a number", int: "a whole number", str: "text", bool: "true or false", type(None): "none",
          list: "a list", tuple: "a list", dict: "an object"}  # fmt: skip


def type_error(value: Any, expected: Any, name: str = "") -> str | None:
    """Return how ``value`` differs from a type.

    Args:
        value: The value to check.
        expected: A type annotation (``list[int]``, ``dict[str, float | None]``, ``tuple[int, ...]``), or a dictionary
            from keys to such types. Keys are required unless they end in ``?``; further keys are allowed. An integer
            is a valid float, and a list a valid tuple. Booleans, and numbers beyond :data:`MAX_NUMBER`, are not valid
            numbers; NaN is.
        name: Name of ``value`` in the message.
    """
    origin, args = get_origin(expected) or expected, get_args(expected)

    def wrong() -> str:
        shown = repr(value)
        return f"{name or 'it'} must be {describe(expected)}, got {shown[:80]}{'…' if len(shown) > 80 else ''}"

    if expected is Any:
        return None
    if origin in (Union, types.UnionType):
        return wrong() if all(type_error(value, one, name) for one in args) else None
    if origin in (int, float):
        kind: Any = Integral if origin is int else Real  # includes NumPy's numbers
        valid = type(value) is not bool and isinstance(value, kind) and not abs(value) > MAX_NUMBER
        return None if valid else wrong()
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            return wrong()
        return _first(type_error(item, args[0], f"{name}[{i}]") for i, item in enumerate(value)) if args else None
    if isinstance(expected, dict) or origin is dict:
        if not isinstance(value, Mapping):
            return wrong()
        if args:
            keys = _first(type_error(key, args[0], f"a name in {name or 'it'}") for key in value)
            return keys or _first(type_error(item, args[1], f"{name}.{key}".lstrip(".")) for key, item in value.items())
        if origin is dict:
            return None
        missing = [key for key in expected if not key.endswith("?") and key not in value]
        if missing:
            return f"{name or 'it'} lacks {', '.join(missing[:5])}"
        known = {key.rstrip("?"): one for key, one in expected.items()}
        return _first(type_error(value[k], one, f"{name}.{k}".lstrip(".")) for k, one in known.items() if k in value)
    return None if isinstance(value, expected) else wrong()


def describe(expected: Any) -> str:
    """Return the name of a type for messages."""
    origin, args = get_origin(expected), get_args(expected)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(one) for one in args)
    if origin in (list, tuple):
        return f"a list of {describe(args[0])}"
    kind = dict if isinstance(expected, dict) else origin or expected
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def content_error(value: Any) -> str | None:
    """Return why a parsed value is refused: nested too deeply, too large, or invalid Unicode."""
    seen = 0
    pending: list[tuple[Any, int]] = [(value, 0)]
    while pending:
        one, depth = pending.pop()
        seen += 1
        if seen > MAX_VALUES:
            return f"it has more than {MAX_VALUES} values"
        if isinstance(one, str):
            try:
                one.encode()
            except UnicodeEncodeError:
                return f"it contains an unpaired surrogate (invalid Unicode) in {one[:40]!r}"
        elif isinstance(one, dict | list | tuple):
            if depth == MAX_DEPTH:
                return f"lists and objects are nested more than {MAX_DEPTH} deep"
            pending += [(item, depth + 1) for item in one]
            if isinstance(one, dict):
                pending += [(item, depth + 1) for item in one.values()]
    return None


def size_error(values: Any) -> str | None:
    """Return which number in a configuration would build a network that no machine holds.

    Transformers builds the network before it looks at the weights, so nothing else stops a damaged or hostile
    configuration with names for 10⁹ classes, or 10⁹ layers.
    """
    pending: list[tuple[Any, str]] = [(values, "")]
    while pending:
        one, name = pending.pop()
        if isinstance(one, dict):
            pending += [(value, str(key)) for key, value in one.items()]
        elif isinstance(one, list | tuple):
            pending += [(value, name) for value in one]
        elif isinstance(one, int):
            limit = MAX_LAYERS if _LAYERS.search(name) else MAX_SIZE
            if one > limit:
                return f"{name} is {one if one < MAX_NUMBER else 'too large'}, and at most {limit} is allowed"
    return None


def _first(messages: Iterator[str | None]) -> str | None:
    return next((one for one in messages if one), None)
