"""A classifier behind its image processor, as one differentiable function."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import PreTrainedModel

from calor_hf.data.pixel_input import PixelInput, pixel_input_of
from calor_hf.modeling import defend
from calor_hf.targets.hf_target import HFTarget, target_of
from calor_hf.targets.module_target import ModuleTarget
from tests.tiny_models import tiny_base


def processor(name: str, **settings: Any) -> Any:
    kind = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    return kind(**settings)


PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3,
                                    "image_std": [0.5] * 3}),
    "crop": ("CLIPImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": 32, "do_convert_rgb": False}),
    "crop_pct": ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.8}),
    "as they are": ("ViTImageProcessor", {"do_resize": False}),
}  # fmt: skip


def random_images(side: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in small]
    return torch.from_numpy(np.stack(smooth).transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("name", PROCESSORS)
def test_it_reads_what_the_processor_makes(name: str) -> None:
    kind, settings = PROCESSORS[name]
    made, images = processor(kind, **settings), random_images(32 if name == "as they are" else 48)
    expected = made(images=[image.permute(1, 2, 0).numpy() for image in images], return_tensors="pt")["pixel_values"]
    found = pixel_input_of(tiny_base("vit"), made)(images.float() / 255)
    assert found.shape == expected.shape
    close = 0.0 if name == "as they are" else 0.2  # filters differ: bilinear here, bicubic and 8 bits there
    assert float((found - expected).abs().mean()) <= close + 1e-5
    correlation = float(torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1])
    assert correlation > 0.995


@pytest.mark.parametrize("defense", [None, "calor", "mid", "bido"])
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_logits_are_the_models(name: str, defense: str | None) -> None:
    settings = {"rank": 2} if defense == "calor" else {"sample_at_eval": False} if defense == "mid" else {}
    base = tiny_base(name, 5)
    model: PreTrainedModel = base if defense is None else defend(base, defense, **settings)
    target = HFTarget(model, image_size=16 if name == "resnet" else None)
    side = target.image_size[0]
    images = torch.rand(3, 3, side, side, requires_grad=True)
    logits = target(images)
    torch.testing.assert_close(logits, model(pixel_values=images).logits)
    torch.testing.assert_close(target.head(target.features(images)), logits)
    assert torch.autograd.grad(logits.sum(), images)[0].abs().sum() > 0
    assert target.num_classes == 5


def test_images_of_another_size_are_resized_with_a_gradient() -> None:
    target = HFTarget(tiny_base("resnet", 5), image_size=16)
    images = torch.rand(2, 3, 24, 24, requires_grad=True)
    assert torch.autograd.grad(target(images).sum(), images)[0].abs().sum() > 0


def test_what_cannot_be_attacked_is_refused() -> None:
    with pytest.raises(ValueError, match="does not say its image size; pass processor= or image_size="):
        HFTarget(tiny_base("resnet", 5))
    siglip = tiny_base("vit", 5)
    type(siglip)  # a stock class; its name decides
    siglip.__class__ = type("Siglip2ForImageClassification", (type(siglip),), {})
    with pytest.raises(ValueError, match="no plain pixels"):
        pixel_input_of(siglip)


def test_stochastic_defenses_say_so() -> None:
    assert HFTarget(defend(tiny_base("resnet", 5), "mid"), image_size=16).stochastic
    assert not HFTarget(tiny_base("resnet", 5), image_size=16).stochastic


def test_targets_from_anything(tmp_path: Any) -> None:
    model = tiny_base("vit", 5)
    model.save_pretrained(tmp_path)
    made = target_of(str(tmp_path))
    assert target_of(made) is made
    image = torch.rand(1, 3, *made.image_size)
    torch.testing.assert_close(made(image), target_of(model)(image))


def test_pixels_by_hand() -> None:
    read = PixelInput((2, 2), mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0), scale=2.0, offset=-1.0, reverse_channels=True)
    images = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    # reversed: 1, 0.5, 0; times 2 minus 1: 1, 0, -1; minus 0.5: 0.5, -0.5, -1.5; over the deviations: 2, -1, -1.5
    assert read(images)[0, :, 0, 0].tolist() == pytest.approx([2.0, -1.0, -1.5])
    with pytest.raises(ValueError, match="expected images of 2 x 2 pixels, got 1 x 1"):
        read(torch.rand(1, 3, 1, 1))


def test_any_module_is_a_target() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    images = torch.rand(2, 3, 2, 2)
    named, plain = ModuleTarget(net, 3, 2, head="3"), ModuleTarget(net, 3, 2)
    assert named.features(images).shape == (2, 4)
    assert torch.equal(named(images), plain(images))
    with pytest.raises(ValueError, match=r"has no module 'fc'; pass one of"):
        ModuleTarget(net, 3, 2, head="fc")
