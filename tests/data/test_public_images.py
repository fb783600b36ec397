"""Public and private images as tensors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from calor_hf.data.loading import load_images
from calor_hf.data.public_images import PublicImages, labeled_pixels, square_pixels


def image(width: int, height: int, value: int = 0) -> Image.Image:
    ramp = np.tile(np.arange(width, dtype=np.uint8)[None, :, None], (height, 1, 3))
    return Image.fromarray(ramp + np.uint8(value))


def test_the_middle_square_is_kept() -> None:
    pixels = square_pixels(image(20, 10), 10)
    assert pixels.dtype == torch.uint8
    assert pixels[0, 0].tolist() == list(range(5, 15))
    assert square_pixels(image(20, 10), 4, crop=4)[0, 0].tolist() == list(range(8, 12))
    assert square_pixels(image(6, 6), 3).shape == (3, 3, 3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1"])
def test_pictures_of_every_mode_become_color(mode: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    image(8, 8).convert(mode).save(tmp_path / "set" / f"a.{'tif' if mode == 'CMYK' else 'png'}")
    images = PublicImages(load_images(str(tmp_path / "set"))[0], 8)
    assert len(images) == 1
    assert images[0].shape == (3, 8, 8)
    assert 0 <= images[0].min() <= images[0].max() <= 1


def test_memory_is_bounded() -> None:
    data = Dataset.from_dict({"image": [image(8, 8, 10 * i) for i in range(4)]}).cast_column("image", ImageFeature())
    images = PublicImages(data, 8, keep_bytes=2 * 3 * 8 * 8)
    values = [images[i].mean().item() for i in range(4)]
    assert len(images._kept) == 2
    assert [images[i].mean().item() for i in range(4)] == values
    assert values == sorted(values)
    for size, crop in ((0, None), (8, 0), (8, -1)):
        with pytest.raises(ValueError, match="at least one pixel"):
            PublicImages(data, size, crop)


def test_images_of_a_parquet_file(tmp_path: Path) -> None:
    data = Dataset.from_dict({"photo": [image(8, 8)], "age": [3]}).cast_column("photo", ImageFeature())
    data.to_parquet(str(tmp_path / "a.parquet"))
    assert load_images(str(tmp_path / "a.parquet"))[0].column_names == ["image"]
    with pytest.raises(FileNotFoundError, match="no folder or file"):
        load_images(str(tmp_path / "nowhere"))


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    image(8, 8).save(tmp_path / "set" / "good.png")
    (tmp_path / "set" / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"bad\.png"):
        load_images(str(tmp_path / "set"))


def test_pictures_of_some_people() -> None:
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b", "c"])})
    data = Dataset.from_dict({"image": [image(8, 8, i) for i in range(6)], "label": [0, 1, 2, 0, 1, 2]}, features)
    images, labels = labeled_pixels(data, 8, [2, 0])
    assert labels.tolist() == [0, 2, 0, 2]
    assert images[:, 0, 0, 0].tolist() == [0, 2, 3, 5]
    assert labeled_pixels(data, 4)[0].shape == (6, 3, 4, 4)
    assert labeled_pixels(data, 4, [])[0].shape == (0, 3, 4, 4)
