"""Shares as text: nearly all is not all, and hardly any is not none, wherever a percentage is printed."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

from calor_hf.core.report_text import percent, points
from calor_hf.recipes.compare import difference_cell
from calor_hf.recipes.robustness import table_cell
from calor_hf.recipes.runs import with_range
from calor_hf.robustness.share import Share


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.996, "99.6 %"), (0.9996, "> 99.9 %"), (1.0, "100.0 %"), (0.0004, "< 0.1 %"), (0.0, "0.0 %"), (0.004, "0.4 %")],
)
def test_nearly_all_is_not_all(value: float, text: str) -> None:
    assert percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "+50.0"), (-0.1234, "-12.3"), (0.0004, "+0.04"), (-0.9996, "-99.96"), (0.0, "+0"), (-1.0, "-100")],
)
def test_a_small_difference_is_not_nothing(value: float, text: str) -> None:
    assert points(value) == text


def test_tables_of_commands_keep_to_it() -> None:
    assert with_range([0.99999]) == "> 99.99"
    assert with_range([0.5, 1.0]) == "75.00 [50.00, 100.00]"
    assert difference_cell({"value": 0.00001, "low": -0.5, "high": 0.25}) == "+0.001 [-50.00, +25.00]"
    assert difference_cell({"value": 0.5, "low": None, "high": None}) == "+50.00"
    assert table_cell(Share(99999, 100000)).startswith("> 99.99 % [")


def test_no_percentage_is_formatted_by_hand() -> None:
    by_hand = re.compile(r"\.\d[fg]\}? ?%|:[^{}\n]{0,4}\.\d%")
    found = {
        str(path): by_hand.findall(path.read_text(encoding="utf-8"))
        for path in Path(str(files("calor_hf"))).rglob("*")
        if path.suffix in (".py", ".html", ".md") and path.name != "report_text.py"
    }
    assert len(found) > 100
    assert {Path(path).name: lines for path, lines in found.items() if lines} == {"progress.py": [".0f}%"]}
