"""The layouts that docs/own_data.md shows: each tree is made, loaded, and has the classes and splits that it shows."""

from pathlib import Path

import pytest

from calor_hf.data.folders import load_labeled_folder, load_plain_folder
from tests.data.test_folders import picture
from tests.docs.blocks import blocks

TREES = [block.text for block in blocks("docs/own_data.md") if block.language == "text"]
FOUND = [
    {"train": {"ada": 2, "alan": 2}},
    {"train": {"ada": 2, "alan": 1}, "test": {"ada": 1, "alan": 1}},
    {"train": {"bus": 1, "train": 1}},
    {"train": {"ada": 1, "alan": 1}},
    {"train": {"ada": 1, "alan": 1}, "test": {"ada": 1, "alan": 1}},
]


def plant(root: Path, tree: str) -> Path:
    """Make the files of a tree: two spaces per level, folders end with a slash, rows of a file follow a colon."""
    above: list[str] = []
    for number, line in enumerate(tree.splitlines()):
        name, _, rows = line.strip().partition(": ")
        above = [*above[: (len(line) - len(line.lstrip())) // 2], name.rstrip("/")]
        path = root.joinpath(*above)
        if rows:
            path.write_text(rows.replace("; ", "\n"))
        elif name.endswith("/"):
            path.mkdir()
        else:
            picture(path, number)
    return root / tree.split("/")[0]


@pytest.mark.parametrize(("tree", "wanted"), list(zip(TREES, FOUND, strict=True)), ids=range(len(FOUND)))
def test_layout_loads_as_shown(tree: str, wanted: dict[str, dict[str, int]], tmp_path: Path) -> None:
    root = plant(tmp_path, tree)
    parts = load_labeled_folder(root).parts
    found = {}
    for split, part in parts.items():
        feature, labels = part.features["label"], part["label"]
        names = [feature.int2str(label) if hasattr(feature, "int2str") else label for label in labels]
        found[split] = {name: names.count(name) for name in sorted(names)}
    assert found == wanted
    assert len(load_plain_folder(root).parts["train"]) == sum(wanted["train"].values())
