"""Frozen settings of a method, readable from and writable to plain dictionaries."""

import dataclasses
import difflib
import math
import operator
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from calor_hf.core.validation import type_error

C = TypeVar("C", bound="MethodConfig")

_LIMITS = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def setting(default: Any = dataclasses.MISSING, help: str = "", **metadata: Any) -> Any:
    """Declare a setting of a :class:`MethodConfig`, or a field of the options of a command.

    A subclass that gives the setting another default, as in ``steps: int = 50``, inherits help and rules.

    Args:
        default: Default value, or a function or a list that makes it; without one the setting is required.
        help: Description, for the command line and the documentation.
        metadata: ``ge``, ``gt``, ``le``, ``lt`` limit a finite number of a method, or each item of a tuple; ``choices``
            are the valid values. None is always valid, if the type allows it. Other names are left to the parser, or to
            the owner of the settings.
    """
    factory = default.copy if isinstance(default, list) else default
    made: Any = {"default_factory": factory} if callable(factory) else {"default": default}
    field: Any = dataclasses.field(**made, metadata={"help": help, **metadata} if help else metadata)
    return field


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Settings of one method: a frozen dataclass that checks itself when it is made."""

    def __init_subclass__(cls) -> None:
        """Pass help and rules of inherited settings on to those that redefine them."""
        super().__init_subclass__()
        for name, inherited in getattr(cls, "__dataclass_fields__", {}).items():
            if name in vars(cls):
                own = vars(cls)[name]
                field: Any = own if isinstance(own, dataclasses.Field) else dataclasses.field(default=own)
                field.metadata = MappingProxyType({**inherited.metadata, **field.metadata})
                setattr(cls, name, field)

    def __post_init__(self) -> None:
        """Check the settings."""
        for field in dataclasses.fields(self):
            if problem := _rule_error(field.name, getattr(self, field.name), field.metadata):
                raise ValueError(problem)
        self.validate()

    def validate(self) -> None:
        """Raise ``ValueError`` for settings that cannot work together; :func:`setting` states rules of single ones."""

    def to_dict(self) -> dict[str, Any]:
        """Settings as a dictionary of plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any]) -> C:
        """Settings from a dictionary.

        Raises:
            ValueError: a key is no setting of this method, or a value is of another type or refused by
                :meth:`validate`.
        """
        if problem := type_error(values, dict[str, Any], "settings"):
            raise ValueError(f"{cls.__name__}: {problem}")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            listed = ", ".join(sorted(known)) or "none"
            raise ValueError(f"{cls.__name__} has no setting {', '.join(unknown)}{hint}; known: {listed}")
        hints = get_type_hints(cls)
        for name, value in values.items():
            if problem := type_error(value, hints[name], name):
                raise ValueError(f"{cls.__name__}: {problem}")
        settings = cls(**values)
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{cls.__name__}: {name} must be a finite number, got {value}")
        return settings

    @classmethod
    def parse(cls: type[C], words: Sequence[str]) -> dict[str, Any]:
        """Settings from words ``name=value`` as a user types them, by the types of the fields.

        ``none``, ``true`` and ``false`` are what they say; a tuple's items are separated by commas.

        Raises:
            ValueError: a word without ``=``, or a value of another type; unknown names are left to :meth:`from_dict`.
        """
        hints = get_type_hints(cls)
        values: dict[str, Any] = {}
        for word in words:
            name, equals, text = word.partition("=")
            if not equals:
                raise ValueError(f"expected a setting as name=value, got {word!r}")
            values[name] = _value(name, text, hints[name]) if name in hints else text
        return values


def _rule_error(name: str, value: Any, rules: Any) -> str | None:
    """Return which rule of :func:`setting` a value breaks."""
    limits = {key: rules[key] for key in _LIMITS if key in rules}
    if value is None:
        return None
    if "choices" in rules and value not in rules["choices"]:
        return f"unknown {name} {value!r}; pass one of {', '.join(rules['choices'])}"
    for one in (value if isinstance(value, tuple | list) else (value,)) if limits else ():
        if not (math.isfinite(one) and all(_LIMITS[key](one, limit) for key, limit in limits.items())):
            if len(limits) == 2:
                bounds = ", ".join(map(str, limits.values()))
                wanted = f"in {'[' if 'ge' in limits else '('}{bounds}{']' if 'le' in limits else ')'}"
            else:
                wanted = " ".join(f"{_SIGNS[key]} {limit}" for key, limit in limits.items())
            return f"{name} must be {'' if math.isfinite(one) else 'a finite number '}{wanted}, got {one}"
    return None


def _value(name: str, text: str, hint: Any) -> Any:
    kinds = [hint] if get_origin(hint) is tuple or not get_args(hint) else list(get_args(hint))
    if type(None) in kinds and text.lower() == "none":
        return None
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        if number in kinds:
            try:
                return number(text)
            except ValueError:
                pass
    for kind in kinds:
        if get_origin(kind) is tuple:
            return tuple(_value(name, item, get_args(kind)[0]) for item in text.split(","))
    if str in kinds:
        return text
    expected = " or ".join("none" if kind is type(None) else kind.__name__ for kind in kinds)
    raise ValueError(f"{name} must be {expected}, got {text!r}")
