"""Registration with the Auto classes of transformers, without loading transformers for it."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGE = __name__.partition(".")[0]


class AfterTransformers(MetaPathFinder):
    """Imports ``calor_hf.modeling``, which registers the Auto classes, as soon as transformers is imported.

    If a module of this package is what imports transformers, it is imported to its end before: ``calor_hf.modeling``
    may need it.
    """

    def __init__(self) -> None:
        self.searching = False
        self.depth = 0  # imports in progress, of transformers and of this package

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module as the other finders do; None leaves those that do not matter here to them."""
        if self.searching or not (name == "transformers" or name.startswith(f"{PACKAGE}.")):
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.searching = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            self.depth += 1
            try:
                execute(module)
            finally:
                self.depth -= 1
            if self.depth == 0 and "transformers" in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                importlib.import_module(f"{PACKAGE}.modeling")

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register_with_transformers() -> None:
    """Register the Auto classes: now if transformers is imported, else as soon as it is."""
    if "transformers" in sys.modules:
        importlib.import_module(f"{PACKAGE}.modeling")
    else:
        sys.meta_path.insert(0, AfterTransformers())
