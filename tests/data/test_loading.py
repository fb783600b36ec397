from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calor_hf import load_synthetic_faces
from calor_hf.data.loading import load_splits


def image_folder(folder: Path, classes: dict[str, int]) -> Path:
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / name / f"{index}.png")
    return folder


def test_synthetic_default_has_three_splits_of_the_same_people() -> None:
    splits = load_splits(None, num_identities=3, image_size=16)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [60, 15, 30]
    assert splits.label_names == ["identity_000", "identity_001", "identity_002"]


def test_missing_splits_are_cut_class_by_class(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "faces", {"ada": 20, "alan": 10})
    splits = load_splits(str(folder), held_out=0.2, seed=1)
    counts = [np.bincount(part["label"]).tolist() for part in (splits.train, splits.validation, splits.test)]
    assert np.sum(counts, axis=0).tolist() == [20, 10]
    assert counts[2] == [4, 2]
    assert min(counts[1]) >= 1
    again = load_splits(str(folder), held_out=0.2, seed=1)
    assert splits.test["label"] == again.test["label"]
    reds = [{np.asarray(image)[0, 0, 0] for image in part["image"]} for part in (splits.train, splits.test)]
    assert reds != [set(), set()]


def test_a_folder_with_splits_keeps_them(tmp_path: Path) -> None:
    image_folder(tmp_path / "faces" / "train", {"ada": 6, "alan": 6})
    image_folder(tmp_path / "faces" / "test", {"ada": 2, "alan": 3})
    splits = load_splits(str(tmp_path / "faces"))
    assert len(splits.test) == 5
    assert len(splits.train) + len(splits.validation) == 12


def test_parquet_files_named_after_splits(tmp_path: Path) -> None:
    load_synthetic_faces(2, 5, image_size=16).to_parquet(str(tmp_path / "train.parquet"))
    load_synthetic_faces(2, 3, image_size=16, split="test").to_parquet(str(tmp_path / "test.parquet"))
    splits = load_splits(str(tmp_path))
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (10, 6)
    one = load_splits(str(tmp_path / "train.parquet"))
    assert one.label_names == ["identity_000", "identity_001"]


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pass an image folder"):
        load_splits(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="check the id and the connection"):
        load_splits("no one/nothing")
    folder = image_folder(tmp_path / "faces", {"ada": 1, "alan": 5})
    with pytest.raises(ValueError, match="class ada has 1 training image"):
        load_splits(str(folder))
    with pytest.raises(ValueError, match="no column 'photo'"):
        load_splits(str(folder), image_column="photo")
