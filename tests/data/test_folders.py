"""Folders of images: every file is accounted for, in any tree; classes and splits are what the first levels say."""

import io
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from calor_hf.data.folders import SPLIT_NAMES, list_files, load_labeled_folder, load_plain_folder
from calor_hf.data.loading import load_images, load_splits

# Names that mean something in a path, in a glob, or to another loader; none starts with a dot.
NAMES = ["ada", "alan", "train", "Val", "dev_kumar", "test", "__other__", "[a-b]*", "my train", "名前", "a.png", "#1?"]


def encoded(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()


PNG = encoded(Image.new("L", (1, 1)))


def picture(path: Path, number: int = 0, size: int = 2) -> Path:
    """Write an image that is different for each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (size, size), (number % 256, number // 256, 7))
    image.save(path, format=None if path.suffix.lower() in Image.registered_extensions() else "png")
    return path


def pictures(root: Path, names: Sequence[str]) -> Path:
    """Write different images with these names."""
    for number, name in enumerate(names):
        picture(root / name, number)
    return root


def faces(root: Path, classes: Sequence[str], count: int = 4) -> Path:
    return pictures(root, [f"{name}/{i}.png" for name in classes for i in range(count)])


def pixels(data: object) -> list[tuple[int, int, int]]:
    return [image.getpixel((0, 0)) for image in data["image"]]  # type: ignore[index]


@settings(max_examples=25, deadline=None)
@given(
    classes=st.lists(st.sampled_from(NAMES), min_size=2, max_size=4, unique=True),
    splits=st.sampled_from([(), ("train",), ("Training", "TEST"), ("train", "dev", "testing")]),
    inner=st.lists(st.sampled_from(["session/", "train/", ".git/", "a/b/"]), max_size=3),
    others=st.lists(st.sampled_from([".DS_Store", "notes.txt", "Thumbs.db", "README"]), max_size=4, unique=True),
    suffix=st.sampled_from([".png", ".JPG", ".jfif", "", ".webp", ".php"]),
)  # fmt: skip
def test_every_file_of_any_tree_is_accounted_for(
    classes: list[str], splits: tuple[str, ...], inner: list[str], others: list[str], suffix: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, number, wanted = Path(folder) / "[set] *", 0, set()
        for base in [root / split for split in splits] or [root]:
            for name in classes:
                for place in ["", *inner]:
                    path = base / name / place / f"test {number}{suffix}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(PNG)
                    number += 1
                    wanted |= {path} if place != ".git/" else set()
            for other in others:
                (base / other).write_bytes(b"nothing to see")
                (base / classes[0] / other).write_bytes(b"nothing to see")
        if not splits and all(name.lower() in SPLIT_NAMES for name in classes):
            with pytest.raises(ValueError, match="have no classes|one class only|two folders of the"):  # noqa: RUF043
                load_labeled_folder(root)
            return
        found = load_labeled_folder(root)
        files = sum(len(names) for _, _, names in os.walk(root))
        assert len(list_files(root)) == files
        left = sum(count for reasons in found.not_taken.values() for count in reasons.values())
        assert sum(map(len, found.parts.values())) + left == files
        assert set(found.parts) == {SPLIT_NAMES[name.lower()] for name in splits or ("train",)}
        paths: list[Path] = []
        for split, part in found.parts.items():
            names = part.features["label"].names
            assert names == sorted(classes)
            for row in part.cast_column("image", ImageFeature(decode=False)):
                paths.append(Path(row["image"]["path"]))
                *above, name = paths[-1].relative_to(root).parts[: 2 if splits else 1]
                assert name == names[row["label"]]
                assert [SPLIT_NAMES[one.lower()] for one in above] == [split] * bool(splits)
        assert len(paths) == len(wanted)
        assert set(paths) == wanted  # none of them twice, in one split or in two
        assert len(load_plain_folder(root).parts["train"]) == (len(wanted) // len(splits) if splits else len(wanted))


def test_summary_says_what_each_split_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    faces(tmp_path / "Train", ("ada", "alan"), 5)
    for name in ("ada", "alan"):
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "0.png").write_bytes((tmp_path / "Train" / name / "0.png").read_bytes())
    picture(tmp_path / "Train" / "ada" / "session 1" / "9.png", 99)
    picture(tmp_path / "Train" / "ada" / "copy.png", 99)
    (tmp_path / "Train" / "ada" / "notes.txt").write_text("x")
    (tmp_path / "README.md").write_text("x")
    (tmp_path / ".DS_Store").write_text("x")
    logging.getLogger("calor_hf").propagate = True
    with caplog.at_level(logging.INFO, logger="calor_hf"):
        splits = load_splits(str(tmp_path), held_out=0.2)
    summary = splits.summary
    assert summary is not None
    assert str(summary) in caplog.text
    assert summary.files == 17
    assert dict(summary.splits["test"].class_sizes) == {"ada": 1, "alan": 1}
    assert summary.splits["train"].not_taken == {"no image (.txt)": 1}
    assert summary.splits[""].not_taken == {"no image (.md)": 1, "hidden": 1}
    assert sum(count for pair, count in summary.shared.items() if "test" in pair) == 2
    assert summary.splits["train"].copies + summary.splits["validation"].copies == 1
    assert "1 images lie deeper than their class folder, such as Train/ada/session 1" in str(summary)
    with pytest.raises(ValueError, match=r"share identical images \(.* of test in .*--allow-duplicates-across-splits"):
        splits.check_duplicates()


def test_copies_are_not_cut_apart(tmp_path: Path) -> None:
    for name, red in (("ada", 0), ("alan", 1)):
        for i in range(12):  # four images, three times each
            picture(tmp_path / name / f"{i}.png", 10 * (i // 3) + red)
    picture(tmp_path / "ada" / "both.png", 200)
    picture(tmp_path / "alan" / "both.png", 200)
    splits = load_splits(str(tmp_path), held_out=0.25)
    assert splits.summary is not None
    assert not splits.summary.shared
    splits.check_duplicates()
    assert [counts.copies for counts in splits.summary.splits.values()] == [9, 4, 4]
    assert "1 images are in more than one class" in str(splits.summary)


def link_to(target: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)


def test_links_are_followed(tmp_path: Path) -> None:
    faces(tmp_path / "elsewhere", ("ada",))
    faces(tmp_path / "set", ("alan",))
    link_to(tmp_path / "elsewhere" / "ada", tmp_path / "set" / "ada")
    link_to(tmp_path / "elsewhere" / "ada" / "0.png", tmp_path / "set" / "alan" / "linked.png")
    splits = load_splits(str(tmp_path / "set"))
    assert splits.label_names == ["ada", "alan"]
    assert splits.summary is not None
    assert splits.summary.files == 9
    link_to(tmp_path / "set", tmp_path / "set" / "alan" / "up")
    with pytest.raises(ValueError, match="alan/up leads back to"):
        load_splits(str(tmp_path / "set"))
    (tmp_path / "set" / "alan" / "up").unlink()
    link_to(tmp_path / "gone", tmp_path / "set" / "grace")
    with pytest.raises(ValueError, match=r"grace leads to .*gone, which does not exist"):
        load_images(str(tmp_path / "set"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/ada/0.png", "Training/ada/1.png"], "two folders of the train split, Training and train"),
        (["val/ada/0.png", "dev/ada/1.png", "train/ada/1.png"], "two folders of the validation split, dev and val"),
        (["train/0.png", "test/1.png"], "the images in .*train have no classes .*one sub-folder per class"),
        (["0.png", "1.png"], "have no classes"),
        (["ada/0.png", "alan/1.png", "loose.png"], "1 images lie next to the class folders .*loose.png"),
        (["faces/ada/0.png", "faces/alan/1.png"], "one class only, faces, .* if faces/ada is a class, pass .*faces"),
        (["test/ada/0.png", "test/alan/0.png"], "no train split"),
        (["train/ada/0.png", "train/alan/0.png", "test/notes.txt"], "no images in .*test"),
        (["ada/0.png", "alan/0.png", "test.zip"], "test.zip, whose images would be left out.*unpack it"),
        (["ada/0.png", "alan/0.tar.gz"], "alan/0.tar.gz"),
        (["notes.txt", ".hidden/0.png"], r"no images in .*hidden: 1, no image \(.txt\): 1"),
    ],
)
def test_layouts_that_would_lose_images_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    for number, name in enumerate(names):
        picture(tmp_path / name, number)
        if not name.endswith(".png"):
            (tmp_path / name).write_bytes(b"nothing to see")
    with pytest.raises(ValueError, match=message):
        load_splits(str(tmp_path))


def test_folders_of_some_splits_and_others_are_classes(tmp_path: Path) -> None:
    splits = load_splits(str(faces(tmp_path, ("bus", "train", "test"))))
    assert splits.label_names == ["bus", "test", "train"]
    assert "test, train: taken as classes" in str(splits.summary)


def test_image_formats_are_told_by_content_and_others_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faces(tmp_path, ("ada", "alan"))
    pictures(tmp_path / "ada", ["10", "11.php", "12.jfif"])
    (tmp_path / "ada" / "phone.heic").write_bytes(b"no such decoder")
    with pytest.raises(ValueError, match=r"1 of 12 images cannot be read .*phone\.heic"):
        load_splits(str(tmp_path))
    summary = load_splits(str(tmp_path), on_bad_image="skip").summary
    assert summary is not None
    assert summary.files == 12
    assert summary.splits["train"].not_taken == {"unreadable": 1}


@pytest.mark.parametrize("name", ["faces.zip", "faces.tar", "faces.tgz", "photo.png"])
def test_single_files_that_are_no_tables_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"unpack it and pass the folder|and no table; pass a folder"):
        load_splits(str(tmp_path / name))


def test_public_folder_is_read_whole(tmp_path: Path) -> None:
    pictures(tmp_path, ["0.png", "test_1.png", "00/2.png", "val/3.png", ".x/4.png"])
    assert pixels(load_images(str(tmp_path))[0]) == [(0, 0, 7), (2, 0, 7), (1, 0, 7), (3, 0, 7)]


# Metadata


def metadata(root: Path, rows: Sequence[tuple[str, object]], column: str = "label", kind: str = "csv") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    if kind == "csv":
        lines = [f"{name},{value}" for name, value in rows]
        (root / "metadata.csv").write_text("\n".join([f"file_name,{column}", *lines]), encoding="utf-8")
    elif kind == "parquet":
        names, values = zip(*rows, strict=True)
        Dataset.from_dict({"file_name": names, column: values}).to_parquet(str(root / "metadata.parquet"))
    else:
        lines = [json.dumps({"file_name": name, column: value}) for name, value in rows]
        (root / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root


ROWS = [(f"{i}.png", "ab"[i % 2]) for i in range(8)]


@pytest.mark.parametrize(
    ("rows", "column", "kind", "names"),
    [
        (ROWS, "label", "csv", ["a", "b"]),
        ([(name, 10 - 8 * (label == "b")) for name, label in ROWS], "label", "csv", ["2", "10"]),
        ([(name, label == "b") for name, label in ROWS], "label", "jsonl", ["False", "True"]),
        (ROWS, "person", "jsonl", ["a", "b"]),
        (ROWS, "label", "parquet", ["a", "b"]),
    ],
)
def test_metadata_gives_labels(
    tmp_path: Path, rows: list[tuple[str, object]], column: str, kind: str, names: list[str]
) -> None:
    metadata(pictures(tmp_path, [name for name, _ in ROWS]), rows, column, kind)
    splits = load_splits(str(tmp_path), label_column=None if column == "label" else column)
    assert splits.label_names == names
    assert splits.summary is not None
    assert splits.summary.files == 9
    of = {name: str(value) for name, value in rows}
    for part in (splits.train, splits.validation, splits.test):
        for (red, _, _), label in zip(pixels(part), part["label"], strict=True):
            assert of[f"{red}.png"] == names[label]


def test_metadata_of_each_split_and_paths_of_windows(tmp_path: Path) -> None:
    for split in ("train", "test"):
        pictures(tmp_path / split, [f"images/{i}.png" for i in range(8)])
        metadata(tmp_path / split, [(f"images\\{name}", label) for name, label in ROWS])
    splits = load_splits(str(tmp_path))
    assert (splits.label_names, len(splits.test)) == (["a", "b"], 8)


def test_metadata_at_the_root_of_split_folders(tmp_path: Path) -> None:
    names = [f"{split}/{i}.png" for split in ("train", "test") for i in range(6)]
    metadata(pictures(tmp_path, names), [(name, "ab"[i % 2]) for i, name in enumerate(names)])
    splits = load_splits(str(tmp_path))
    assert (splits.label_names, len(splits.test)) == (["a", "b"], 6)


def test_captions_do_not_hide_the_folders(tmp_path: Path) -> None:
    metadata(faces(tmp_path, ("ada", "alan")), [("ada/0.png", "hi")], "caption")
    splits = load_splits(str(tmp_path))
    assert splits.label_names == ["ada", "alan"]
    assert "has no column of labels (columns: file_name, caption): not used" in str(splits.summary)
    with pytest.raises(ValueError, match=r"no column 'person' in .*columns: file_name, caption"):
        load_splits(str(tmp_path), label_column="person")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_further_columns_of_metadata_stay_on_request(tmp_path: Path, kind: str) -> None:
    rows = [(f"{name}/{i}.png", number + 1) for number, name in enumerate(("ada", "alan")) for i in range(4)]
    metadata(faces(tmp_path, ("ada", "alan")), rows, "group", kind)
    splits = load_splits(str(tmp_path), keep=["group"])
    for part in (splits.train, splits.validation, splits.test):
        assert part["group"] == [str(label + 1) for label in part["label"]]
    assert "not used" not in str(splits.summary)
    with pytest.raises(ValueError, match=r"no metadata file in .* has a column 'sex' \(columns: file_name, group\)"):
        load_splits(str(tmp_path), keep=["sex"])
    metadata(tmp_path, rows[1:], "group", kind)
    with pytest.raises(ValueError, match=r"1 of 8 images in .* have no group in a metadata file \(ada/0.png\)"):
        load_splits(str(tmp_path), keep=["group"])


def test_metadata_that_names_the_same_classes_keeps_the_folders_names(tmp_path: Path) -> None:
    faces(tmp_path, ("ada", "alan"), 5)
    rows = [(f"{name}/{i}.png", number) for number, name in enumerate(("ada", "alan")) for i in range(5)]
    assert load_splits(str(metadata(tmp_path, rows))).label_names == ["ada", "alan"]
    rows = [(name, int(index > 3)) for index, (name, _) in enumerate(rows)]
    metadata(tmp_path, rows)
    with pytest.raises(ValueError, match=r"row 5 of .*ada/4.png has the label '1', which contradicts the folders"):
        load_splits(str(tmp_path))
    assert load_splits(str(tmp_path), label_column="label").label_names == ["0", "1"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS[:7], ("7.png", "")], "row 8 of .* has no label in the column label"),
        (ROWS[:6], r"2 of 8 images in .* are not listed .*6.png, 7.png"),
        ([*ROWS, ("8.png", "a")], "row 9 of .*: the file '8.png' does not exist"),
        ([*ROWS, ("../8.png", "a")], "row 9 of .* below"),
        ([*ROWS, ("/etc/8.png", "a")], "row 9 of .* below"),
        ([*ROWS, ("0.png", "b")], "row 9 of .* listed twice"),
        ([*ROWS, ("notes.txt", "b")], r"row 9 of .* is not an image \(no image \(.txt\)\)"),
        ([*ROWS[:7], ("7.png", "-1")], "row 8 of .*: expected a name or whole number in label, got '-1'"),
    ],
)
def test_metadata_that_contradicts_the_files_is_refused(
    tmp_path: Path, rows: list[tuple[str, object]], message: str
) -> None:
    metadata(pictures(tmp_path, [name for name, _ in ROWS]), rows)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=message):
        load_splits(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", b"name,label\n0.png,a\n", "no column file_name"),
        ("metadata.csv", b"\xff\xfe\x00", "cannot be read"),
        ("metadata.jsonl", b'{"file_name": \n', "cannot be read"),
        ("metadata.jsonl", b"[1]\n", "row 1 of .*: expected an object"),
        ("metadata.parquet", b"PAR1", "cannot be read"),
        (
            "metadata.jsonl",
            b'{"file_name": "0.png", "label": [1, 0]}\n',
            "row 1 of .*: expected a name or whole number",
        ),
    ],
)
def test_damaged_metadata_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    pictures(tmp_path, ["0.png", "1.png"])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_splits(str(tmp_path))


def test_cut_is_that_of_images_without_copies(tmp_path: Path) -> None:
    splits = load_splits(str(faces(tmp_path, ("ada", "alan"), 10)), held_out=0.2, seed=3)
    assert [np.bincount(part["label"]).tolist() for part in (splits.train, splits.validation, splits.test)] == [
        [6, 6],
        [2, 2],
        [2, 2],
    ]
