"""The report page in a real browser: no request, no error, sorts, filters, readable on a telephone."""

import dataclasses
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from calor_hf.auditing.gallery import Gallery, gallery_of
from calor_hf.auditing.html import to_html
from calor_hf.core.reconstruction import Cost, Reconstruction
from tests.auditing import made_up
from tests.auditing.small_report import small_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run"]  # fmt: skip


def images(private: bool) -> Gallery:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    one = Reconstruction(torch.rand(6, 3, 16, 16), labels, torch.rand(6, 2), torch.rand(6), Cost())
    found = {"adaptive": one, "weak": one}
    if not private:
        return gallery_of(found)
    nearest = {name: torch.tensor([0, 0, 1, 1, 2, 2]) for name in found}
    bytes_ = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    return gallery_of(found, bytes_, torch.tensor([0, 1, 2]), nearest)


def test_private_pictures_are_there_only_when_asked_for() -> None:
    shown, hidden = to_html(small_report(), images(True)), to_html(small_report(), images(False))
    assert shown.count("<img") == 3 + 6 + 6
    assert hidden.count("<img") == 6
    assert "nearest private</th>" not in hidden
    assert to_html(small_report()).count("<img") == 0


def test_nothing_is_fetched_and_hostile_names_stay_text() -> None:
    names = ["<script>alert(1)</script>", '" onerror="alert(2)', "Cem"]
    target = dataclasses.replace(small_report().target, name="<img src=x>", settings={"rank": "</style><b>"})
    text = to_html(small_report(label_names=names, target=target), images(True))
    for wrong in ("<script>alert", "<img src=x>", '" onerror="', "</style><b>", "http://", "https://", "url("):
        assert wrong not in text.replace("http://www.w3.org/", "").replace("http://purl.org/", "").replace(
            "http://creativecommons.org/", ""
        ).replace("https://matplotlib.org/", "").replace("url(#", "")


@pytest.fixture
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (400, "dark")])
def test_a_browser_shows_the_page(width: int, scheme: Any, browser: Any, tmp_path: Path) -> None:
    report = small_report(power=made_up.POWER)
    (tmp_path / "report.html").write_text(to_html(report, images(True), [made_up.report()]), encoding="utf-8")
    complaints: list[str] = []
    asked: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url.split(":")[0]))
    page.goto((tmp_path / "report.html").as_uri())
    assert page.evaluate("[...document.images].map(i => i.naturalWidth)") == [16] * 15
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    smallest = (
        "Math.min(...[...document.querySelectorAll('p, td, li')].map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert page.evaluate(smallest) >= 14
    back, ink = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    assert ([int(x) for x in re.findall(r"\d+", back)] < [int(x) for x in re.findall(r"\d+", ink)]) == (
        scheme == "dark"
    )
    assert "83.3 %" in page.locator(".verdict p").first.inner_text()

    def identities() -> list[str]:
        found: list[str] = page.locator("#people tbody tr:visible td:first-child").all_inner_texts()
        return found

    assert identities() == ["Ada", "Bob", "Cem"]
    page.get_by_role("button", name="weak").click()
    assert identities() == ["Bob", "Ada", "Cem"]  # the one who was recognized comes first
    page.get_by_role("button", name="weak").click()
    assert identities() == ["Ada", "Cem", "Bob"]
    page.get_by_role("button", name="person").click()
    assert identities() == ["Cem", "Bob", "Ada"]
    page.get_by_label("Find a person").fill("b")
    assert identities() == ["Bob"]
    assert page.locator("#shown").inner_text() == "1 of 3"
    assert complaints == []
    assert set(asked) <= {"file", "data"}
