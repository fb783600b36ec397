"""README.md and the guides as pages: the table of contents that GitHub does not need, and links to folders."""

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

GUIDES = (
    "first_steps", "coming_from_trainer", "choose_a_defense", "choose_a_rank", "defend_a_finished_model", "decoys",
    "own_data", "laptop", "audit", "devices",
)  # fmt: skip
"""In the order of reading; guides that are not named here come after them."""

_CONTENTS = """
```{{toctree}}
:hidden:
:caption: Guides

{guides}
SECURITY
CONTRIBUTING
SKILL
```

```{{toctree}}
:hidden:
:caption: Reference

docs/reference/api
docs/reference/cli
docs/reference/registries
```

```{{toctree}}
:hidden:
:caption: Measured
:glob:

docs/results/*
examples/paper/README
CHANGELOG
```
"""
_LINK = re.compile(r"\]\(([^)#:\s]+?)/?\)")


def to_pages(text: str, folder: Path, root: Path) -> str:
    """Lead links to folders, where GitHub lists the files, to the folder's README, or else to its first page."""

    def resolved(match: re.Match[str]) -> str:
        target = folder / match[1]
        if not target.is_dir():
            return match[0]
        page = next(iter([*sorted(target.glob("README.md")), *sorted(target.glob("*.md"))]), None)
        return match[0] if page is None else f"](/{page.resolve().relative_to(root.resolve()).as_posix()})"

    return _LINK.sub(resolved, text)


def contents(root: Path) -> str:
    """Table of contents of the site, which stands at the end of README.md."""
    there = {file.stem for file in (root / "docs").iterdir() if file.suffix in (".md", ".ipynb")}
    names = [*(name for name in GUIDES if name in there), *sorted(there - set(GUIDES))]
    return _CONTENTS.format(guides="\n".join(f"docs/{name}" for name in names))


def _read(app: Sphinx, docname: str, source: list[str]) -> None:
    file = Path(app.env.doc2path(docname))
    if file.suffix == ".md":
        source[0] = to_pages(source[0], file.parent, Path(app.srcdir))
    if docname == app.config.root_doc:
        source[0] += contents(Path(app.srcdir))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}
