"""Images of every kind arrive as upright RGB; broken ones are named."""

import io
import logging
from pathlib import Path

import numpy as np
import pytest
import transformers
from datasets import load_dataset
from numpy.typing import NDArray
from PIL import Image

from calor_hf.data.bad_images import to_rgb, without_bad_images
from calor_hf.data.images import ImageDataset
from calor_hf.data.loading import load_splits


def stored(image: Image.Image, kind: str = "png", **options: object) -> Image.Image:
    """``image`` as it comes back from a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def pixels(image: Image.Image) -> list[list[list[int]]]:
    assert image.mode == "RGB"
    found: list[list[list[int]]] = np.asarray(image).tolist()
    return found


def gray(values: list[int] | list[float]) -> list[list[list[float]]]:
    return [[[value] * 3 for value in values]]


def row(values: list[float], kind: type) -> NDArray[np.generic]:
    return np.array([values], dtype=kind)


def test_grey_scale_of_every_depth() -> None:
    assert pixels(to_rgb(stored(Image.fromarray(row([0, 7, 255], np.uint8))))) == gray([0, 7, 255])
    # 16 bits keep the upper eight: 257 = 65535 / 255 is one step.
    assert pixels(to_rgb(stored(Image.fromarray(row([0, 257, 65535], np.uint16))))) == gray([0, 1, 255])
    assert pixels(to_rgb(Image.fromarray(row([0, 257, 65535], np.int32)))) == gray([0, 1, 255])
    assert pixels(to_rgb(Image.fromarray(row([0, 0.2, 1], np.float32)))) == gray([0, 51, 255])
    assert pixels(to_rgb(Image.fromarray(row([0, 7, 200], np.float32)))) == gray([0, 7, 200])
    assert pixels(to_rgb(stored(Image.new("1", (1, 1), 1)))) == gray([255])


def test_transparent_parts_become_white() -> None:
    # Half opaque red on white: (255 + 255) / 2 = 255 and 255 / 2 = 127.5.
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 128))
    clear, half = pixels(to_rgb(stored(image)))[0]
    assert clear == [255, 255, 255]
    assert half[0] == 255
    assert half[1] == half[2]
    assert abs(half[1] - 127) <= 1
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([10, 20, 30])
    assert pixels(to_rgb(stored(palette))) == [[[10, 20, 30]]]
    assert pixels(to_rgb(stored(palette, transparency=0))) == [[[255, 255, 255]]]
    assert pixels(to_rgb(Image.new("LA", (1, 1), (0, 0)))) == gray([255])


def test_turned_upright_as_the_camera_says() -> None:
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees to show
    upright = to_rgb(stored(image, exif=exif))
    assert upright.size == (1, 2)
    assert pixels(upright) == [[[255, 0, 0]], [[0, 0, 0]]]


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (1, 1), color) for color in ("red", "blue")]
    moving = stored(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert getattr(moving, "n_frames", 1) == 2
    assert pixels(to_rgb(moving)) == [[[255, 0, 0]]]


@pytest.mark.skipif(transformers.__version__.startswith("4."), reason="transformers 4 takes its height for channels")
def test_one_pixel_is_an_image_too() -> None:
    processor_class = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
    data = load_dataset_of([Image.new("RGB", (1, 1), "red"), Image.new("L", (1, 3), 7)])
    samples = ImageDataset(data, processor_class(size={"height": 8, "width": 8}))
    assert [tuple(samples[i]["pixel_values"].shape) for i in range(2)] == [(3, 8, 8), (3, 8, 8)]


def load_dataset_of(images: list[Image.Image]) -> object:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a"])})
    return Dataset.from_dict({"image": images, "label": [0] * len(images)}, features=features)


@pytest.fixture
def broken_folder(tmp_path: Path) -> Path:
    """Two people of six images each; of ada, one cut off and one no image at all."""
    rng = np.random.default_rng(0)
    for person in ("ada", "alan"):
        (tmp_path / "faces" / person).mkdir(parents=True)
        for index in range(6):
            noise = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "faces" / person / f"{index}.png")
    whole = (tmp_path / "faces" / "ada" / "1.png").read_bytes()
    (tmp_path / "faces" / "ada" / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "faces" / "ada" / "4.png").write_text("not an image")
    return tmp_path / "faces"


def test_unreadable_images_are_listed_by_file_name(broken_folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"2 of 12 images cannot be read \(.*ada.1\.png: .*; .*ada.4\.png: .*--on-bad-image skip"
    ):
        load_splits(str(broken_folder))


def test_unreadable_images_can_be_left_out(broken_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("calor_hf").propagate = True
    with caplog.at_level(logging.WARNING, logger="calor_hf"):
        splits = load_splits(str(broken_folder), on_bad_image="skip")
    assert "2 of 12 images cannot be read" in caplog.text
    labels = [*splits.train["label"], *splits.validation["label"], *splits.test["label"]]
    assert (labels.count(0), labels.count(1)) == (4, 6)
    assert all(image.size == (16, 16) for image in splits.train["image"])


def test_unknown_way_with_bad_images_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown on_bad_image 'hide'; pass raise or skip"):
        without_bad_images(load_dataset_of([Image.new("L", (1, 1))]), "image", "hide")


def test_class_folder_without_an_image_is_named(tmp_path: Path) -> None:
    for person, file in (("ada", "0.png"), ("alan", "0.png"), ("grace", "notes.txt")):
        (tmp_path / person).mkdir()
        (tmp_path / person / file).write_bytes(b"")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="class folders without an image: empty, grace; remove or fill them"):
        load_splits(str(tmp_path))


def test_labels_with_gaps_are_numbered_anew_alike_in_all_splits(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "label": Value("int64")})
    for split, labels in (("train", [7, 3, 11, 7, 3, 11] * 2), ("test", [11, 3])):
        images = [Image.new("L", (4, 4), label) for label in labels]
        data = Dataset.from_dict({"image": images, "label": labels}, features=features)
        data.to_parquet(str(tmp_path / f"{split}.parquet"))
    splits = load_splits(str(tmp_path))
    assert splits.label_names == ["3", "7", "11"]
    assert splits.test["label"] == [2, 0]
    for part in (splits.train, splits.test):
        names = [int(splits.label_names[label]) for label in part["label"]]
        assert names == [image.getpixel((0, 0)) for image in part["image"]]
    assert load_dataset("parquet", data_files=str(tmp_path / "test.parquet"))["train"]["label"] == [11, 3]


def test_class_that_only_the_test_split_has_is_refused(tmp_path: Path) -> None:
    from datasets import Dataset

    for split, labels in (("train", ["a", "b"] * 4), ("test", ["c"])):
        images = [Image.new("L", (4, 4))] * len(labels)
        Dataset.from_dict({"image": images, "label": labels}).to_parquet(str(tmp_path / f"{split}.parquet"))
    with pytest.raises(ValueError, match="the test split has classes that the train split lacks: c"):
        load_splits(str(tmp_path))
