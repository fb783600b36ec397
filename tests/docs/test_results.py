"""Tables in docs/results say what their JSON says."""

import json
from pathlib import Path

from benchmarks.real_faces import tables

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def test_the_comparison_on_real_faces_regenerates() -> None:
    cells = json.loads((RESULTS / "real_comparison.json").read_text(encoding="utf-8"))
    assert tables(cells) in (RESULTS / "real_comparison.md").read_text(encoding="utf-8")
    assert {cell["defense"] for cell in cells} >= {"none", "mid", "bido", "label_smoothing", "transfer", "calor"}
