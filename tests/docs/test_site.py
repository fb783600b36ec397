"""The documentation: pages of the registries, links of the Markdown files, and in the slow part the site itself."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from calor_hf.attacks.plg import PLG, PLGConfig
from calor_hf.core.registry import Registry
from tests.docs.blocks import FILES, ROOT

pytest.importorskip("sphinx", reason="the extra 'docs' is not installed")

from docs._ext import registry_pages, repository_links

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_CODE = re.compile(r"^( *)```.*?^\1```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
_ROWS = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
_RULE = re.compile(r"\|(\s*:?-+:?\s*\|)+")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CUT = """() => [...document.querySelectorAll("pre")].filter(pre => pre.scrollWidth > pre.clientWidth).length"""


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


def broken_tables(text: str) -> list[str]:
    """First rows of tables without a rule below them, or whose rows have other numbers of cells."""
    broken = []
    for table in _ROWS.findall(re.sub(r"^( *)```.*?^\1```", "", text + "\n", flags=re.DOTALL | re.MULTILINE)):
        rows = table.splitlines()
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
        if len(rows) < 2 or not _RULE.fullmatch(rows[1].strip()) or len(widths) > 1:
            broken.append(rows[0])
    return broken


class Prose(HTMLParser):
    """Texts of a page that hold a pipe, outside code: cells of a table that was not understood."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.inside, self.stray = list[str](), list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in ("pre", "code", "script", "style", "dt", "title"):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if not self.inside and "|" in data and data.strip() != "|":
            self.stray.append(data.strip())


def test_table_checkers_see() -> None:
    whole, torn = "| a | b |\n|---|:-:|\n| `c` | d \\| e |\n", "| a | b |\n|---|---|\n| c | d |\n\n| e | f |\n"
    assert broken_tables(whole) == broken_tables(f"```\n{torn}```") == []
    assert broken_tables(torn) == ["| e | f |"]
    assert broken_tables("| a |\n|---|\n| b | c |") == ["| a |"]
    assert Prose("<p>a</p><td>b</td><pre>| c |</pre><li>|</li>").stray == []
    assert Prose("<p>| <code>a</code> | b |</p>").stray == ["| b |"]


@pytest.mark.parametrize("file", [*FILES, "CHANGELOG.md"])
def test_tables_are_whole(file: str) -> None:
    assert broken_tables((ROOT / file).read_text(encoding="utf-8")) == []


def test_link_checker_sees() -> None:
    text = "# A `b` heading: c\n[a](README.md) [b](#a-b-heading-c) [c](none.md) [d](README.md#none) [e](#a)\n`[f](g)`"
    assert broken_links("README.md", text) == ["none.md", "README.md#none", "#a"]


@pytest.mark.parametrize("file", [*FILES, "CHANGELOG.md", "docs/first_steps.ipynb"])
def test_links_lead_somewhere(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    if file.endswith(".ipynb"):
        text = "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    assert broken_links(file, text) == []


def test_every_figure_is_in_the_gallery() -> None:
    shown = set(_LINK.findall((ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")))
    figures = {file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*.png")}
    assert figures <= shown


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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(folder)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_site_builds_without_a_warning(site: Path) -> None:
    assert "README.html" in (site / "index.html").read_text()
    assert "views" in (site / "docs/reference/attacks/plg.html").read_text()
    assert "data:image/png" in (site / "docs/first_steps.html").read_text() or list(site.rglob("_images/*.png"))


def pages(site: Path) -> Iterator[Path]:
    """Pages of prose, without the listings of the package and the page that leads to README.html."""
    found = sorted(site.rglob("*.html"))
    yield from (page for page in found if "_modules" not in page.parts and page != site / "index.html")


@pytest.mark.slow
def test_no_table_falls_apart(site: Path) -> None:
    stray = {page.relative_to(site).as_posix(): Prose(page.read_text(encoding="utf-8")).stray for page in pages(site)}
    assert len(stray) > 100
    assert {page: texts for page, texts in stray.items() if texts} == {}


@pytest.mark.slow
def test_no_code_is_cut_off_and_all_of_it_can_be_copied(site: Path) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page, cut = browser.new_page(viewport={"width": 1280, "height": 800}), {}
        for file in pages(site):
            page.goto(file.as_uri())
            cut[file.relative_to(site).as_posix()] = page.evaluate(CUT)
        assert {name: number for name, number in cut.items() if number} == {}
        page.goto((site / "README.html").as_uri())
        blocks = page.locator("article div.highlight pre").count()
        assert page.locator("article button.copybtn").count() == blocks > 5
        browser.close()
