"""Generated pages: one for every registered method, one for the public names, one for the commands.

They are written into docs/reference before Sphinx reads the pages; the folder is not in git.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from sphinx.application import Sphinx

import calor_hf
from calor_hf.cli.decoys import COMMANDS as DECOYS
from calor_hf.cli.main import COMMANDS
from calor_hf.cli.main import main as calor_hf_command

FOLDER = "docs/reference"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A registry and its place on the site.

    Attributes:
        title: Title of its page.
        package: Package of the registry; if it does not exist, there is no page.
        registry: Name of the registry in the package.
        use: Command or call that uses the method ``{name}``.
    """

    title: str
    package: str
    registry: str
    use: str

    @property
    def folder(self) -> str:
        """Folder of its pages."""
        return self.package.rpartition(".")[2]


KINDS = (
    Kind("Defenses", "calor_hf.defenses", "DEFENSES", "calor-hf train --defense {name}"),
    Kind("Attacks", "calor_hf.attacks", "ATTACKS", "calor-hf audit --attacks {name}"),
    Kind("Metrics", "calor_hf.metrics", "METRICS", "calor-hf audit --metrics {name}"),
    Kind("Priors", "calor_hf.priors", "PRIORS", "calor-hf prior --prior {name}"),
    Kind("Generators", "calor_hf.generators", "GENERATORS", 'load_generator("folder or Hub id")'),
    Kind("Studies", "examples.paper.studies", "STUDIES", "python -m examples.paper {name}"),
)


def write_pages(folder: Path, kinds: Sequence[Kind] = KINDS) -> None:
    """Write all pages into ``folder``; keep unchanged files, delete those of other names."""
    pages = dict(_pages(kinds))
    for old in folder.rglob("*.rst"):
        if old.relative_to(folder).as_posix() not in pages:
            old.unlink()
    for name, text in pages.items():
        file = folder / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")


def _pages(kinds: Sequence[Kind]) -> Iterator[tuple[str, str]]:
    found = [kind for kind in kinds if importlib.util.find_spec(kind.package) is not None]
    for kind in found:
        registry = getattr(importlib.import_module(kind.package), kind.registry)
        classes = {name: registry.get(name) for name in registry.names()}
        yield f"{kind.folder}.rst", _overview(kind, classes)
        for name, method in classes.items():
            yield f"{kind.folder}/{name}.rst", method_page(kind, name, method)
    yield "registries.rst", _title("Every method") + _toctree([kind.folder for kind in found])
    yield "api.rst", _api()
    yield "cli.rst", _commands()


def _overview(kind: Kind, classes: dict[str, type]) -> str:
    module = inspect.cleandoc(importlib.import_module(kind.package).__doc__ or "")
    rows = [[f":doc:`{name} <{kind.folder}/{name}>`", first_line(method)] for name, method in classes.items()]
    contents = _toctree([f"{kind.folder}/{name}" for name in classes], hidden=True)
    return _title(kind.title) + f"{module}\n\n" + _table(["name", ""], rows, (25, 75)) + contents


def method_page(kind: Kind, name: str, method: type) -> str:
    """Return the page of a registered class: usage, documentation, settings and presets."""
    parts = [_title(name), f'``{kind.use.format(name=name)}``, class from ``{kind.registry}.get("{name}")``.\n\n']
    parts.append(f".. autoclass:: {method.__module__}.{method.__qualname__}\n")
    parts.append("   :members:\n   :exclude-members: config_class\n\n")
    config = getattr(method, "config_class", None)
    if config is not None:
        parts += [_title("Settings", "-"), _settings(config)]
    presets = {key: values for key, values in getattr(method, "presets", {}).items() if values}
    if presets:
        rows = [[f"``{key}``", _words(values)] for key, values in presets.items()]
        parts += [_title("Presets", "-"), _table(["preset", "changes"], rows, (20, 80))]
    if kind.registry == "METRICS":
        parts += [_title("In an audit", "-"), _metric(method)]
    if kind.registry == "STUDIES":
        parts += [_title("In the paper", "-"), _study(method)]
    return "".join(parts)


def first_line(method: type) -> str:
    """Return the first line of a class's docstring."""
    return (inspect.getdoc(method) or "").partition("\n")[0]


def _settings(config: type) -> str:
    rows = []
    for field in dataclasses.fields(config):
        if field.default is not dataclasses.MISSING:
            default = f"``{field.default!r}``"
        else:
            default = "" if field.default_factory is dataclasses.MISSING else f"``{field.default_factory()!r}``"
        rows.append([f"``{field.name}``", default, escape(field.metadata.get("help", ""))])
    return _table(["name", "default", "meaning"], rows, (25, 20, 55)) if rows else "No settings.\n\n"


def _metric(method: Any) -> str:
    lines = [f"- Needs: {', '.join(f'``{need}``' for need in method.needs) or 'only the images'}."]
    if method.slow:
        lines.append("- Trains a network, so it runs only on request.")
    if method.about_target:
        lines.append("- Measures the target, not the reconstructions: an audit reports it once.")
    elif method.by_image:
        lines.append("- A mean over images; its chance level uses reconstructions of other identities.")
    return "\n".join(lines) + "\n\n"


def _study(method: Any) -> str:
    lines = [f"- Claim of the paper: {escape(method.claim)}", f"- Source: {escape(method.source)}"]
    if method.caveat:
        lines.append(f"- Caveat: {escape(method.caveat)}")
    return "\n".join(lines) + "\n\n"


def _api() -> str:
    text = _title("Python names") + "All of these are imported from ``calor_hf``.\n\n"
    for name in calor_hf.__all__:
        value = getattr(calor_hf, name)
        if name.isupper():
            kind = next(kind for kind in KINDS if kind.registry == name)
            text += f".. py:data:: {name}\n   :module: calor_hf\n\n"
            text += f"   Registry, with ``names()`` and ``get(name)``: :doc:`{kind.title.lower()} <{kind.folder}>`.\n\n"
        elif inspect.isclass(value):
            # More than a hundred arguments come from transformers, which documents them.
            given = "(...)" if len(inspect.signature(value).parameters) > 40 else ""
            text += f".. autoclass:: calor_hf.{name}{given}\n   :members:\n\n"
        elif callable(value):
            text += f".. autofunction:: calor_hf.{name}\n\n"
    return text


def _commands() -> str:
    text = _title("Commands") + "Output of ``calor-hf <command> --help``.\n\n"
    for name in (*COMMANDS, *(f"decoys {name}" for name in DECOYS)):
        text += _title(f"calor-hf {name}", "-") + ".. code-block:: text\n\n"
        text += "".join(f"   {line}".rstrip() + "\n" for line in help_of(name).splitlines()) + "\n"
    return text


def help_of(command: str) -> str:
    """Return the output of ``calor-hf COMMAND --help``, as wide as a page."""
    shown = io.StringIO()
    wide = mock.patch.dict(os.environ, {"COLUMNS": "90", "NO_COLOR": "1"})
    with wide, contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        calor_hf_command([*command.split(), "--help"])
    return shown.getvalue()


def escape(text: str) -> str:
    """Escape plain text for reStructuredText."""
    return re.sub(r"([\\*`|_])", r"\\\1", text)


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"``{key}={value}``" for key, value in values.items())


def _title(text: str, line: str = "=") -> str:
    return f"{text}\n{line * len(text)}\n\n"


def _toctree(entries: Sequence[str], hidden: bool = False) -> str:
    options = "   :hidden:\n" if hidden else "   :maxdepth: 2\n"
    return f".. toctree::\n{options}\n" + "".join(f"   {entry}\n" for entry in entries) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    lines = [".. list-table::", f"   :widths: {' '.join(map(str, widths))}", "   :header-rows: 1", ""]
    for row in [head, *rows]:
        lines += [f"   {'*' if not number else ' '} - {cell}".rstrip() for number, cell in enumerate(row)]
    return "\n".join(lines) + "\n\n"


def _write(app: Sphinx) -> None:
    write_pages(Path(app.srcdir) / FOLDER)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True}
