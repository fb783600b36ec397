"""Stored ratios of the benchmarks: when a new run is worse, and that the page shows what is stored."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import ratios
from benchmarks.__main__ import LONG, SHORT

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def ratio(low: float, high: float, goal: str = ">= 1") -> dict[str, Any]:
    return {"name": "speed", "value": (low + high) / 2, "low": low, "high": high, "goal": goal, "limit": ""}


@pytest.mark.parametrize(
    ("new", "goal", "is_worse"),
    [
        ((0.80, 0.85), ">= 1", True),  # 0.85 < 0.9 * 0.95
        ((0.80, 0.86), ">= 1", False),  # 0.86 > 0.855: within the margin
        ((2.0, 3.0), ">= 1", False),  # better
        ((1.20, 1.30), "<= 1", True),  # 1.2 > 1.1 * 1.05
        ((1.15, 1.30), "<= 1", False),
        ((0.1, 0.2), "<= 1", False),
        ((9.0, 9.5), "stated", False),  # no way is the better one
        ((1.4, 1.4), "0.7 to 1.3", True),
        ((0.6, 0.6), "0.7 to 1.3", True),
        ((1.25, 1.4), "0.7 to 1.3", False),
    ],
)
def test_a_run_is_worse_where_its_whole_interval_is(new: tuple[float, float], goal: str, is_worse: bool) -> None:
    lines = ratios.worse([ratio(*new, goal)], [ratio(0.95, 1.05, goal)])
    assert len(lines) == is_worse
    assert all("speed" in line and "was 1 [0.95, 1.05]" in line for line in lines)


def test_a_new_ratio_is_compared_with_nothing() -> None:
    assert ratios.worse([ratio(0.1, 0.2)], []) == []


def test_a_saved_run_takes_the_place_of_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratios, "FILE", tmp_path / "ratios.json")
    assert ratios.load() == {}
    ratios.save("a", [ratio(1, 2)])
    ratios.save("b", [ratio(3, 4)])
    ratios.save("a", [ratio(5, 6)])
    assert {name: run["ratios"][0]["low"] for name, run in ratios.load().items()} == {"a": 5, "b": 3}


def test_the_page_shows_what_is_stored() -> None:
    stored = ratios.load()
    assert set(stored) <= {*SHORT, *LONG}
    assert ratios.table(stored) in PAGE.read_text(encoding="utf-8")
