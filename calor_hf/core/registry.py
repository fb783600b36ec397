"""Registries of classes by the name that a user types."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

from calor_hf.core.suggestion import unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes by name; the modules of ``package`` register themselves when they are first asked for.

    A new method is one new file in ``package`` with ``@REGISTRY.register("name")`` above its class. Files whose name
    starts with an underscore are not imported.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._classes: dict[str, type[T]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator: make a class available under ``name``.

        Raises:
            ValueError: another class has this name already.
        """

        def decorate(cls: type[T]) -> type[T]:
            known = self._classes.get(name)
            if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(f"{self.kind} '{name}' is already {known.__module__}.{known.__qualname__}")
            self._classes[name] = cls
            return cls

        return decorate

    def names(self) -> list[str]:
        """Registered names in alphabetical order."""
        self._load()
        return sorted(self._classes)

    def get(self, name: str) -> type[T]:
        """Class registered under ``name``.

        Raises:
            KeyError: the name is unknown; the message suggests the nearest one and lists all.
        """
        self._load()
        if name not in self._classes:
            raise KeyError(unknown(self.kind, name, self._classes))
        return self._classes[name]

    def _load(self) -> None:
        if self._loaded:
            return
        for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self.package}.{module.name}")
        self._loaded = True
