"""Columns, labels and splits of tables, as `load_splits` reads them."""

import io
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Value
from datasets import Image as ImageFeature
from PIL import Image

from calor_hf.data.loading import Splits, load_images, load_splits

AB = ClassLabel(names=["a", "b"])


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def table(labels: list[Any], feature: Any = None, column: str = "label", **columns: Any) -> Dataset:
    """Images whose red value is 10 times their row, and their labels."""
    images = [{"bytes": png(10 * row), "path": None} for row in range(len(labels))]
    data = Dataset.from_dict(
        {"image": images, **{name: values for name, (values, _) in columns.items()}, column: labels}
    )
    for name, kind in {
        "image": ImageFeature(),
        column: feature,
        **{n: kind for n, (_, kind) in columns.items()},
    }.items():
        data = data.cast_column(name, kind) if kind else data
    return data


def saved(folder: Path, **splits: Dataset) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in splits.items():
        data.to_parquet(str(folder / f"{name}.parquet"))
    return str(folder)


def by_red(splits: Splits) -> dict[str, dict[int, str]]:
    """Class of each image, by its red value, in each split."""
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {
        name: {row["image"].getpixel((0, 0))[0]: splits.label_names[row["label"]] for row in part}
        for name, part in parts.items()
    }


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        ([0.0, 1.0], "float32", ["0", "1"]),
        ([False, True], "bool", ["False", "True"]),
        ([20, 3], "uint8", ["3", "20"]),
        (["é", "B"], "large_string", ["B", "é"]),
    ],
)
def test_numbers_truth_values_and_words_are_class_names(
    tmp_path: Path, labels: list[Any], kind: str, names: list[str]
) -> None:
    splits = load_splits(saved(tmp_path, train=table(labels * 3, Value(kind))))
    assert splits.label_names == names
    words = [str(int(label)) if kind == "float32" else str(label) for label in labels * 3]
    found = by_red(splits)
    assert {red: name for part in found.values() for red, name in part.items()} == {
        10 * row: word for row, word in enumerate(words)
    }


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        (["a", "b", None, None], None, r"row 2 of the train split has no label.*\(2 of 4 rows"),
        (["a", " "], None, "row 1 of the train split has no label"),
        ([0, 1, None], AB, "row 2 of the train split has no label"),
        ([0.0, float("nan")], None, "row 1 of the train split has no label"),
        ([0.0, 0.5], None, "row 1 of the train split has the label 0.5, which is not a whole number"),
        ([0.0, float("inf")], None, "row 1 of the train split has the label inf"),
        ([0, 1, -1], None, "row 2 of the train split has the label -1, which stands for no label"),
        ([[0, 1], [1]], None, r"row 0 holds \[0, 1\].*several labels are not supported"),
        ([[0.0, 1.0], [1.0, 0.0]], None, "of one-hot labels store the position of the 1"),
        ([None, None], None, "row 0 of the train split has no label"),
        ([{"x": 1}, {"x": 2}], None, "must hold one class per row"),
        (["cafe\u0301", "caf\u00e9"], None, "differ only in spaces or in the encoding"),
    ],
)
def test_labels_that_are_not_one_class_are_refused_by_row(
    tmp_path: Path, labels: list[Any], feature: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_splits(saved(tmp_path, train=table(labels, feature)))


def test_classes_are_matched_by_name_across_splits(tmp_path: Path) -> None:
    test = ClassLabel(names=["unused", "b", "a"])
    source = saved(tmp_path, train=table([0, 1] * 4, AB), val=table(["b", "a"]), test=table([1, 2, 2], test))
    found = by_red(load_splits(source))
    assert found["test"] == {0: "b", 10: "a", 20: "a"}
    assert found["validation"] == {0: "b", 10: "a"}
    assert found["train"] == {10 * row: "ab"[row % 2] for row in range(8)}


def test_hidden_test_labels_name_the_remedy_which_works(tmp_path: Path) -> None:
    source = saved(tmp_path, train=table([0, 1] * 8, AB), validation=table([0, 1], AB), test=table([-1] * 3, AB))
    with pytest.raises(ValueError, match=r"row 0 of the test split has the label -1.*3 of 3.*--splits train=NAME"):
        load_splits(source)
    splits = load_splits(source, splits={"train": "train", "validation": "validation"})
    assert (len(splits.train) + len(splits.test), len(splits.validation)) == (16, 2)
    unlabeled = table([0], AB).remove_columns("label")
    with pytest.raises(ValueError, match="the test split has no column 'label'; columns: image"):
        load_splits(saved(tmp_path, test=unlabeled))


def test_several_columns_are_named_unless_one_is_label(tmp_path: Path) -> None:
    sex: Any = {"sex": ([0, 0, 1, 1] * 4, ClassLabel(names=["f", "m"]))}
    people = ClassLabel(names=list("abcd"))
    one = saved(tmp_path / "a", train=table([0, 1, 2, 3] * 4, people, **sex))
    assert load_splits(one).label_names == list("abcd")
    two = saved(tmp_path / "b", train=table([0, 1, 2, 3] * 4, people, "person", **sex))
    with pytest.raises(ValueError, match=r"several columns hold class labels: sex, person; .*--label-column"):
        load_splits(two)
    assert load_splits(two, label_column="sex").label_names == ["f", "m"]
    with pytest.raises(ValueError, match="the train split has no column 'name'; columns: image, sex, person"):
        load_splits(two, label_column="name")
    images = table([0, 1] * 3, AB).add_column("crop", [{"bytes": png(9), "path": None}] * 6)
    images = images.cast_column("crop", ImageFeature()).rename_column("image", "photo")
    source = saved(tmp_path / "c", train=images)
    with pytest.raises(ValueError, match=r"several columns hold images: photo, crop; .*--image-column"):
        load_splits(source)
    assert sorted(by_red(load_splits(source, image_column="photo"))["train"]) != [9]
    assert load_images(source, "crop")[0][0]["image"].getpixel((0, 0)) == (9, 0, 0)


@pytest.mark.parametrize("kind", ["binary", "struct", "path"])
def test_bytes_and_paths_are_images(tmp_path: Path, kind: str) -> None:
    (tmp_path / "img").mkdir()
    for row in range(6):
        (tmp_path / "img" / f"{row}.png").write_bytes(png(10 * row))
    values: dict[str, Any] = {
        "binary": [png(10 * row) for row in range(6)],
        "struct": [{"bytes": png(10 * row), "path": f"{row}.png"} for row in range(6)],
        "path": [f"img/{row}.png" for row in range(6)],
    }
    Dataset.from_dict({"image": values[kind], "label": ["a", "b"] * 3}).to_parquet(str(tmp_path / "t.parquet"))
    found = by_red(load_splits(str(tmp_path / "t.parquet")))
    assert {red: name for part in found.values() for red, name in part.items()} == {
        10 * row: "ab"[row % 2] for row in range(6)
    }


def test_an_image_column_of_numbers_is_refused(tmp_path: Path) -> None:
    data = Dataset.from_dict({"image": [[1, 2]] * 4, "label": ["a", "b"] * 2})
    with pytest.raises(ValueError, match=r"column 'image' of the train split holds .*, expected images"):
        load_splits(saved(tmp_path, train=data))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_csv_and_json_with_paths(tmp_path: Path, suffix: str) -> None:
    rows = [(f"{row}.png", "ab"[row % 2]) for row in range(6)]
    for row, (name, _) in enumerate(rows):
        (tmp_path / name).write_bytes(png(10 * row))
    lines = [f'{{"image": "{name}", "label": "{label}"}}' for name, label in rows]
    text = "\n".join(["image,label", *(",".join(row) for row in rows)] if suffix == "csv" else lines)
    file = tmp_path / f"list [1].{suffix}"
    file.write_text(text + "\n")
    found = by_red(load_splits(str(file)))
    assert {red: name for part in found.values() for red, name in part.items()} == {
        10 * row: label for row, (_, label) in enumerate(rows)
    }


def test_saved_sets_and_webdatasets(tmp_path: Path) -> None:
    import tarfile

    DatasetDict(train=table([0, 1] * 3, AB), dev=table([1], AB)).save_to_disk(str(tmp_path / "dict [1]"))
    found = by_red(load_splits(str(tmp_path / "dict [1]")))
    assert found["validation"] == {0: "b"}
    table([0, 1] * 3, AB).with_format("numpy").save_to_disk(str(tmp_path / "one"))
    assert load_splits(str(tmp_path / "one")).label_names == ["a", "b"]
    with tarfile.open(tmp_path / "w.tar", "w") as archive:
        for row in range(6):
            for suffix, content in (("png", png(10 * row)), ("cls", str(row % 2).encode())):
                member = tarfile.TarInfo(f"{row:04}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    found = by_red(load_splits(str(tmp_path / "w.tar")))
    assert {red: name for part in found.values() for red, name in part.items()} == {
        10 * row: str(row % 2) for row in range(6)
    }


def test_splits_have_whole_names_or_are_chosen(tmp_path: Path) -> None:
    parts = {"train_clean": table([0, 1] * 4, AB), "unsupervised": table([-1], AB), "Testing": table([1], AB)}
    source = saved(tmp_path / "a", **parts)
    with pytest.raises(ValueError, match=r"'train_clean' is not train, .*train_clean, unsupervised.*--splits"):
        load_splits(source)
    assert len(load_splits(source, splits={"train": "train_clean", "test": "Testing"}).test) == 1
    for chosen, message in (
        ({"train": "clean"}, "--splits train=clean: expected .* names of: Testing, train_clean, unsupervised"),
        ({"train": "train_clean", "test": "train_clean"}, "uses one split twice"),
        ({"test": "Testing"}, "no train split"),
    ):
        with pytest.raises(ValueError, match=message):
            load_splits(source, splits=chosen)
    two = saved(tmp_path / "b", train=table([0, 1], AB), val=table([0], AB), dev=table([0], AB))
    with pytest.raises(ValueError, match="'val' is a second validation split"):
        load_splits(two)


def test_shards_and_folders_of_tables_keep_their_splits(tmp_path: Path) -> None:
    root = tmp_path / "train* of [test] dev"
    for number in range(2):
        saved(root / "data", **{f"train-0000{number}-of-00002": table([0, 1] * 3, AB)})
        saved(root / "test", **{f"000{number}": table([0, 1], AB)})
    splits = load_splits(str(root))
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (12, 4)


def test_damaged_tables_and_mixed_folders_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 cut off PAR1")
    with pytest.raises(ValueError, match=r"the table .* cannot be read \(.*; write it again"):
        load_splits(str(tmp_path))
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / "0.png").write_bytes(png(0))
    with pytest.raises(ValueError, match=r"holds tables \(train.parquet\) and 1 image files"):
        load_splits(str(tmp_path))


def test_choices_without_a_use_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="synthetic faces have no columns"):
        load_splits(None, label_column="sex")
    with pytest.raises(ValueError, match="a revision is that of a Hub data set"):
        load_splits(saved(tmp_path, train=table([0, 1], AB)), revision="v1")


def test_labels_of_a_model_with_another_order(tmp_path: Path) -> None:
    splits = load_splits(saved(tmp_path, train=table([0, 1, 2] * 4, ClassLabel(names=list("abc")))))
    before = by_red(splits)
    other = splits.for_classes(["c", "a", "b"])
    assert other.label_names == ["c", "a", "b"]
    assert by_red(other) == before
    assert other.train["label"] != splits.train["label"]
    assert splits.for_classes(["LABEL_0", "LABEL_1", "LABEL_2"]) is splits
    with pytest.raises(ValueError, match="the data has other classes than the target: it lacks d and has c instead"):
        splits.for_classes(["a", "b", "d"])
    with pytest.raises(ValueError, match="the data has 3 classes, the target 2"):
        splits.for_classes(["a", "b"])
