"""What plain values, as JSON has them, look like: told before they are used, and where they do not fit."""

import re
import types
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin

_LAYERS = re.compile("layers|depths|blocks|stages|num_conv")
MOST, MOST_LAYERS = 2**22, 2**12
"""Largest whole number in a model's configuration, and largest number of layers."""
MAX_DEPTH = 64
"""Lists and objects in one another, at most, in what others wrote."""
MAX_NUMBER = 1e100
"""Larger than anything that is measured or set, and far from what a float cannot hold."""
MAX_VALUES = 5_000_000
"""Values in a file, at most; YAML can name a value again and again."""


def type_error(value: Any, shape: Any, place: str = "") -> str | None:
    """Where ``value`` differs from ``shape``; None: nowhere.

    Args:
        value: To look at.
        shape: A type as annotations have it (``list[int]``, ``dict[str, float | None]``, ``tuple[int, ...]``), or a
            dictionary of keys with a shape each, which have to be there unless they end in ``?``; other keys may be
            there. A whole number is a float, too; a list is a tuple; a truth value is no number, and neither is one
            beyond :data:`MAX_NUMBER`; NaN is.
        place: Name of ``value`` in the sentence.
    """
    if isinstance(shape, dict):
        if not isinstance(value, Mapping):
            return _sentence(place, "an object", value)
        missing = [name for name in shape if not name.endswith("?") and name not in value]
        if missing:
            return f"{place or 'it'} lacks {', '.join(missing[:5])}"
        inner = {name.rstrip("?"): part for name, part in shape.items()}
        return _first(
            type_error(value[name], part, f"{place}.{name}".lstrip("."))
            for name, part in inner.items()
            if name in value
        )
    origin, parts = get_origin(shape), get_args(shape)
    if shape is Any:
        return None
    if origin in (Union, types.UnionType):
        found = [type_error(value, part, place) for part in parts]
        return None if None in found else _sentence(place, described(shape), value)
    if shape in (int, float):
        kind: Any = Integral if shape is int else Real  # of numpy, too
        fits = type(value) is not bool and isinstance(value, kind) and not abs(value) > MAX_NUMBER
        return None if fits else _sentence(place, described(shape), value)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            return _sentence(place, described(shape), value)
        return _first(type_error(item, parts[0], f"{place}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            return _sentence(place, described(shape), value)
        keys = _first(type_error(key, parts[0], f"a name in {place or 'it'}") for key in value)
        return keys or _first(type_error(item, parts[1], f"{place}.{key}".lstrip(".")) for key, item in value.items())
    return None if isinstance(value, shape) else _sentence(place, described(shape), value)


def described(shape: Any) -> str:
    """A shape in words, for messages."""
    if get_origin(shape) in (Union, types.UnionType):
        return " or ".join(described(part) for part in get_args(shape))
    if get_origin(shape) in (list, tuple):
        return f"a list of {described(get_args(shape)[0])}"
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false", type(None): "none",
             list: "a list", tuple: "a list", dict: "an object"}  # fmt: skip
    return names.get(get_origin(shape) or shape, getattr(shape, "__name__", str(shape)))


def content_error(value: Any) -> str | None:
    """Why a value that a parser made is refused: too deep, too much, or text that is none; None: it is fine."""
    seen = 0
    open_values: list[tuple[Any, int]] = [(value, 0)]
    while open_values:
        one, depth = open_values.pop()
        seen += 1
        if seen > MAX_VALUES:
            return f"it has more than {MAX_VALUES} values"
        if isinstance(one, str):
            try:
                one.encode()
            except UnicodeEncodeError:
                return f"it holds half a character, in {one[:40]!r}"
        elif isinstance(one, dict | list | tuple):
            if depth == MAX_DEPTH:
                return f"more than {MAX_DEPTH} lists and objects lie in one another"
            open_values += [(item, depth + 1) for item in one]
            if isinstance(one, dict):
                open_values += [(item, depth + 1) for item in one.values()]
    return None


def size_error(values: Any) -> str | None:
    """Which number in a configuration would build a network for hours, or of more memory than there is; None: none.

    Transformers builds what a configuration says before it looks at the weights, so nothing else stops a damaged or
    hostile one: names for 10⁹ classes, 10⁹ layers.
    """
    open_values: list[tuple[Any, str]] = [(values, "")]
    while open_values:
        one, place = open_values.pop()
        if isinstance(one, dict):
            open_values += [(value, str(name)) for name, value in one.items()]
        elif isinstance(one, list | tuple):
            open_values += [(value, place) for value in one]
        elif isinstance(one, int):
            most = MOST_LAYERS if _LAYERS.search(place) else MOST
            if one > most:
                return f"{place} is {one if one < MAX_NUMBER else 'endless'}, and at most {most} makes sense"
    return None


def _first(found: Iterator[str | None]) -> str | None:
    return next((one for one in found if one), None)


def _sentence(place: str, expected: str, value: Any) -> str:
    shown = repr(value)
    return f"{place or 'it'} must be {expected}, got {shown[:80]}{'…' if len(shown) > 80 else ''}"
