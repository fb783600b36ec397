"""The documentation: pages of the registries, links of the Markdown files, and in the slow part the site itself."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from calor_hf.attacks.plg import PLG, PLGConfig
from calor_hf.core.registry import Registry
from tests.docs.blocks import FILES, ROOT

pytest.importorskip("sphinx", reason="the extra 'docs' is not installed")

from docs._ext import registry_pages, repository_links

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_CODE = re.compile(r"^( *)```.*?^\1```|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    plain = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in _HEADING.findall(plain)}


def broken_links(file: str, text: str) -> list[str]:
    """Links to files, folders or headings of the repository that are not there."""
    broken = []
    for link in _LINK.findall(_CODE.sub("", text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / file).parent / path if path else ROOT / file
        page = text if not path or not target.is_file() else target.read_text(encoding="utf-8", errors="replace")
        if not target.exists() or (anchor and anchor not in anchors(page)):
            broken.append(link)
    return broken


def test_link_checker_sees() -> None:
    text = "# A `b` heading: c\n[a](README.md) [b](#a-b-heading-c) [c](none.md) [d](README.md#none) [e](#a)\n`[f](g)`"
    assert broken_links("README.md", text) == ["none.md", "README.md#none", "#a"]


@pytest.mark.parametrize("file", [*FILES, "CHANGELOG.md", "docs/first_steps.ipynb"])
def test_links_lead_somewhere(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    if file.endswith(".ipynb"):
        text = "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    assert broken_links(file, text) == []


def test_every_registered_name_gets_a_page(tmp_path: Path) -> None:
    missing = registry_pages.Kind("Nothing", "calor_hf.not_there", "NOTHING", "{name}")
    (tmp_path / "attacks").mkdir()
    (tmp_path / "attacks" / "lost.rst").write_text("of an attack that is gone")
    registry_pages.write_pages(tmp_path, [*registry_pages.KINDS, missing])
    pages = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.rst")}
    assert {"api.rst", "cli.rst", "registries.rst", "defenses/calor.rst", "metrics/fid.rst", "priors/lokt.rst"} <= pages
    assert {"generators/stylegan2.rst", "attacks/plg.rst"} <= pages
    assert not any("not_there" in page or "lost" in page for page in pages)
    assert re.search("^ +--dataset ", (tmp_path / "cli.rst").read_text(), re.MULTILINE)


def test_page_of_a_method_has_settings_presets_and_class() -> None:
    kind = next(kind for kind in registry_pages.KINDS if kind.registry == "ATTACKS")
    page = registry_pages.method_page(kind, "plg", PLG)
    assert ".. autoclass:: calor_hf.attacks.plg.PLG" in page
    assert "   * - ``views``\n     - ``2``\n     - Random views a step, summed; 0: the image as it is.\n" in page
    assert "   * - ``adaptive``\n     - ``objective=poincare``" in page
    assert len(re.findall(r"^   \* - ``", page, re.MULTILINE)) == len(PLGConfig().to_dict()) + 2  # and two presets


def test_words_are_not_taken_for_markup() -> None:
    assert registry_pages.escape("a*b* `c` d_ |e|") == r"a\*b\* \`c\` d\_ \|e\|"


def test_every_registry_of_the_package_is_known() -> None:
    known = {kind.package for kind in registry_pages.KINDS}
    for file in sorted((ROOT / "calor_hf").glob("*/base.py")):
        module = __import__(f"calor_hf.{file.parent.name}.base", fromlist=["base"])
        registries = [value for value in vars(module).values() if isinstance(value, Registry)]
        assert {registry.package for registry in registries} <= known


def test_links_to_folders_lead_to_a_page(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("b.md", "a.md"):
        (tmp_path / "docs" / name).write_text("# page")
    text = "[x](docs) [y](docs/) [z](docs/b.md) [w](https://example.org/docs)"
    assert repository_links.to_pages(text, tmp_path, tmp_path) == (
        "[x](/docs/a.md) [y](/docs/a.md) [z](docs/b.md) [w](https://example.org/docs)"
    )


def test_guides_that_are_not_listed_come_last(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("zebra.md", "audit.md", "deploy.md", "first_steps.ipynb", "conf.py"):
        (tmp_path / "docs" / name).touch()
    listed = re.findall(r"^docs/(\w+)$", repository_links.contents(tmp_path), re.MULTILINE)
    assert listed == ["first_steps", "audit", "deploy", "zebra"]


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    front = (tmp_path / "index.html").read_text()
    assert "README.html" in front
    assert "views" in (tmp_path / "docs/reference/attacks/plg.html").read_text()
    assert "data:image/png" in (tmp_path / "docs/first_steps.html").read_text() or list(tmp_path.rglob("_images/*.png"))
