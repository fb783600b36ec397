"""Image processors of any library and class: what they state, what is measured, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from calor_hf.core.saved_config import plain_processor, processor_of
from calor_hf.data.images import ImageDataset
from calor_hf.data.pixel_input import PixelInput, PixelScale, pixel_input_of
from calor_hf.modeling import defend
from calor_hf.targets.hf_target import HFTarget
from tests.tiny_models import tiny_base


def vit_processor(**settings: Any) -> Any:
    kind = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
    return kind(**settings)


class TensorsOnly:
    """States nothing and gives torch tensors only, as timm's does: 32 x 24 pixels, blue first, [0, 255] less 51."""

    def __call__(self, images: Any, return_tensors: str) -> dict[str, torch.Tensor]:
        if return_tensors != "pt":
            raise ValueError(f"return_tensors must be 'pt', but got {return_tensors}")
        pixels = torch.tensor(np.asarray(images.resize((24, 32)))).permute(2, 0, 1).float()
        return {"pixel_values": (pixels.flip(0) - 51)[None] / torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)}


class PerImage:
    """Normalizes each image by its own mean."""

    def __call__(self, images: Any, return_tensors: str) -> dict[str, torch.Tensor]:
        pixels = torch.tensor(np.asarray(images.resize((8, 8)))).permute(2, 0, 1).float()
        return {"pixel_values": (pixels - pixels.mean())[None]}


class FiveViews(TensorsOnly):
    """Cuts an image into five."""

    def __call__(self, images: Any, return_tensors: str) -> dict[str, torch.Tensor]:
        return {"pixel_values": super().__call__(images, return_tensors)["pixel_values"].repeat(5, 1, 1, 1)}


def timm_processor(**settings: Any) -> Any:
    """As the wrapper of timm, by default for a square center crop."""
    made = type("TimmWrapperImageProcessor", (), {})()
    made.data_config = {
        "input_size": (3, 64, 64), "crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic",
        "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.5), **settings,
    }  # fmt: skip
    return made


def test_what_a_processor_does_not_state_is_measured() -> None:
    found = pixel_input_of(tiny_base("vit"), TensorsOnly())
    assert (found.size, found.reverse_channels) == ((32, 24), True)
    # White is 255: (255 - 51) / 1, / 2 and / 4, the first channel being blue; black is -51 over the same.
    corners = found(
        torch.stack(
            [torch.ones(3, 8, 8), torch.zeros(3, 8, 8), torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 8, 8)]
        )
    )
    expected = [[204, 102, 51], [-51, -25.5, -12.75], [-51, -25.5, 51]]
    torch.testing.assert_close(corners[..., 0, 0], torch.tensor(expected))
    assert PixelScale.of(TensorsOnly()).mean == pytest.approx((51 / 255,) * 3)  # type: ignore[union-attr]


@pytest.mark.parametrize(("kind", "message"), [(PerImage, "by the same mean"), (FiveViews, r"got \(5, 3, 32, 24\)")])
def test_processors_that_no_normalization_describes_are_refused(kind: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pixel_input_of(tiny_base("vit"), kind())
    assert PixelScale.of(kind()) is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": {"height": 32, "width": 48}}, PixelInput((32, 48), (32, 48), mean=(0.5,) * 3, std=(0.5,) * 3)),
        ({"size": 32, "do_normalize": False}, PixelInput((32, 32), (32, 32))),
        ({"do_resize": False, "do_normalize": False}, PixelInput((32, 32), (32, 32))),  # as configured
        ({"size": 32, "image_mean": 0.0, "image_std": 1.0}, PixelInput((32, 32), (32, 32))),
        ({"size": 32, "do_rescale": False, "do_normalize": False}, PixelInput((32, 32), (32, 32), scale=255.0)),
    ],
)  # fmt: skip
def test_sizes_and_numbers_as_stated(settings: dict[str, Any], expected: PixelInput) -> None:
    assert pixel_input_of(tiny_base("vit"), vit_processor(**settings)) == expected


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, {"shortest_edge": 73}),  # 64 / 0.875 = 73.1
        ({"crop_mode": "squash"}, {"height": 73, "width": 73}),
        ({"input_size": (3, 64, 32), "crop_pct": 1.0}, {"height": 64, "width": 32}),
    ],
)
def test_timms_become_ordinary_ones_that_are_saved(settings: dict[str, Any], size: Any, tmp_path: Path) -> None:
    made = timm_processor(**settings)
    plain_processor(made).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert {name: number for name, number in saved["size"].items() if number is not None} == size
    assert saved["resample"] == Image.Resampling.BICUBIC
    model = tiny_base("vit")
    read = pixel_input_of(model, processor_of(str(tmp_path)))
    assert read.size == made.data_config["input_size"][1:]
    assert (read.mean, read.std) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.5))
    assert read == pixel_input_of(model, made)


@pytest.mark.parametrize("channels", [1, 4])
def test_models_that_do_not_read_rgb_are_refused(channels: int) -> None:
    config = tiny_base("vit").config
    config.num_channels = channels
    model = transformers.ViTForImageClassification(config)
    for one in (model, defend(model, "calor", rank=1)):
        with pytest.raises(ValueError, match=rf"reads images of {channels} channels?, but images are RGB"):
            HFTarget(one)


def test_saved_processors_load_or_are_refused(tmp_path: Path) -> None:
    folder = str(tmp_path)
    tiny_base("vit").save_pretrained(folder)
    assert processor_of(folder) is None
    vit_processor(size=32).save_pretrained(folder)
    file = tmp_path / "preprocessor_config.json"
    saved = json.loads(file.read_text())
    file.write_text(json.dumps({**saved, "image_processor_type": "ViTImageProcessorFast"}))
    assert pixel_input_of(tiny_base("vit"), processor_of(folder)).size == (32, 32)  # torchvision is not needed
    for damaged in (json.dumps({**saved, "image_processor_type": "OfTomorrowImageProcessor"}), "{"):
        (tmp_path / "config.json").write_text('{"model_type": "calor"}')
        file.write_text(damaged)
        with pytest.raises(ValueError, match=r"the image processor of .* cannot be loaded"):
            processor_of(folder)


def images(*sizes: tuple[int, int]) -> list[dict[str, Any]]:
    return [{"image": Image.new("RGB", size), "label": 0} for size in sizes]


def test_batches_of_several_sizes_are_refused_before_training() -> None:
    as_they_are = vit_processor(do_resize=False)
    assert ImageDataset(images((40, 30), (40, 30)), as_they_are).check_processor() == 40
    assert ImageDataset(images((40, 30), (30, 40)), TensorsOnly()).check_processor() == 32
    with pytest.raises(ValueError, match="2 sizes, such as 30 x 40 and 40 x 30, which do not fit into one batch"):
        ImageDataset(images((40, 30), (30, 40)), as_they_are).check_processor()
    with pytest.raises(ValueError, match="cannot read an RGB image"):
        ImageDataset(images((40, 30)), vit_processor(image_mean=[0.5], image_std=[0.5])).check_processor()
