"""Registries of classes by the name that a user types."""

import ast
import importlib
import pkgutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Generic, TypeVar

from calor_hf.core.suggestion import did_you_mean

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
            hint = did_you_mean(name, self._classes)
            raise KeyError(f"unknown {self.kind} '{name}'.{hint} Known: {', '.join(self.names())}")
        return self._classes[name]

    def _load(self) -> None:
        if self._loaded:
            return
        for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self.package}.{module.name}")
        self._loaded = True


def summaries(package: str) -> dict[str, str]:
    """First docstring line of each class registered in ``package``, by name, read from the source files."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    found = dict[str, str]()
    for file in (file for folder in spec.submodule_search_locations for file in Path(folder).glob("[!_]*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ClassDef):
                continue
            for decorator in node.decorator_list:
                match decorator:
                    case ast.Call(func=ast.Attribute(attr="register"), args=[ast.Constant(value=str(name))]):
                        found[name] = (ast.get_docstring(node) or "").partition("\n")[0]
    return dict(sorted(found.items()))
