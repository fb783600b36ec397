"""Frozen settings of a method, readable from and writable to plain dictionaries."""

import dataclasses
from typing import Any, TypeVar

C = TypeVar("C", bound="MethodConfig")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Settings of one method: a frozen dataclass that checks itself when it is made."""

    def __post_init__(self) -> None:
        """Check the settings."""
        self.validate()

    def validate(self) -> None:
        """Raise ``ValueError`` for settings that cannot work; subclasses say which."""

    def to_dict(self) -> dict[str, Any]:
        """Settings as a dictionary of plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any]) -> C:
        """Settings from a dictionary.

        Raises:
            ValueError: a key is no setting of this method, or a value is refused by :meth:`validate`.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"{cls.__name__} has no setting {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        return cls(**values)
