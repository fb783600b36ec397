"""Tables in docs/results say what their JSON says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    adaptation,
    adaptation_heads,
    adaptation_leakage,
    decoy_controls,
    decoy_faces,
    decoys,
    frontier,
    pretraining,
    real_defenses,
    whole_network,
)
from benchmarks.real_faces import tables
from examples.paper.study import STUDIES

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def test_the_comparison_on_real_faces_regenerates() -> None:
    cells = json.loads((RESULTS / "real_comparison.json").read_text(encoding="utf-8"))
    assert tables(cells) in (RESULTS / "real_comparison.md").read_text(encoding="utf-8")
    assert {cell["defense"] for cell in cells} >= {"none", "mid", "bido", "label_smoothing", "transfer", "calor"}


@pytest.mark.parametrize(
    ("make", "numbers", "page"),
    [
        (decoy_controls.tables, "decoy_controls.json", "decoys_controls.md"),
        (decoys.tables, "decoys_drawn.json", "decoys_drawn.md"),
        (lambda kept: adaptation.table(kept["cells"]), "adaptation.json", "adaptation.md"),
        (
            lambda kept: adaptation.table(kept["cells"], adaptation_heads.WAYS, adaptation_heads.CHANGED),
            "adaptation_heads.json",
            "adaptation.md",
        ),
        (adaptation_leakage.tables, "adaptation_leakage.json", "adaptation_leakage.md"),
        pytest.param(frontier.tables, "frontier.json", "frontier.md", marks=pytest.mark.slow),
        pytest.param(pretraining.tables, "pretraining.json", "pretraining.md", marks=pytest.mark.slow),
        pytest.param(real_defenses.tables, "real_defenses.json", "real_defenses.md", marks=pytest.mark.slow),
        (whole_network.tables, "whole_network.json", "whole_network.md"),
        pytest.param(decoy_faces.tables, "decoys_faces.json", "decoys_faces.md", marks=pytest.mark.slow),
    ],
)
def test_tables_regenerate(make: Callable[[Any], str], numbers: str, page: str) -> None:
    kept = json.loads((RESULTS / numbers).read_text(encoding="utf-8"))
    written = (RESULTS / page).read_text(encoding="utf-8")
    assert all(table in written for table in make(kept).split("\n\n"))


@pytest.mark.parametrize("numbers", sorted(RESULTS.glob("study_*.json")), ids=lambda file: file.stem)
def test_the_tables_of_studies_regenerate(numbers: Path) -> None:
    kept = json.loads(numbers.read_text(encoding="utf-8"))
    assert STUDIES.get(kept["study"]).table(kept) in numbers.with_suffix(".md").read_text(encoding="utf-8")
