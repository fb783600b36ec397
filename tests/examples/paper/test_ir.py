"""IR networks: against a reference written from the facts of face.evoLVe, and under every defense."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification

from calor_hf import CALoRForImageClassification, HFTarget
from calor_hf.data.public_images import labeled_pixels
from calor_hf.data.synthetic_faces import load_synthetic_faces
from calor_hf.defenses import DEFENSES
from calor_hf.defenses.transfer import Transfer, TransferConfig
from calor_hf.heads.find_head import find_heads
from calor_hf.modeling import defend
from examples.paper.configuration_ir import IRConfig
from examples.paper.convert_ir import convert_ir
from examples.paper.modeling_ir import IRForImageClassification

# Counted by hand. A unit that keeps d channels has 18d² + 5d weights (two 3x3 convolutions, PReLU, two batch norms),
# one from c to d channels 10cd + 9d² + 2c + 5d (a 1x1 convolution and its batch norm more); the stem 27·64 + 3·64.
UNIT = {64: 74_048, 128: 295_552, 256: 1_180_928, 512: 4_721_152}
WIDER = {128: 230_144, 256: 919_040, 512: 3_673_088}
STEM = 1_920


def tiny_config(**settings: Any) -> IRConfig:
    return IRConfig(**{
        "depths": (2, 1), "hidden_sizes": (8, 16), "image_size": 32, "embedding_size": 12, "num_labels": 10, **settings
    })  # fmt: skip


def tiny() -> IRForImageClassification:
    model = IRForImageClassification(tiny_config())
    model.eval()
    return model


@pytest.mark.parametrize(
    ("depth", "image_size", "units", "total"),
    [
        # 3·64, one wider and 3·128, one wider and 13·256, one wider and 2·512; Linear 512·7·7 → 512.
        (50, 112, (3, 3, 13, 2), 43_574_976),
        (152, 64, (3, 7, 35, 2), 62_086_848),  # Linear 512·4·4 → 512
    ],
)
def test_number_of_weights(depth: int, image_size: int, units: tuple[int, ...], total: int) -> None:
    kept = sum(n * weights for n, weights in zip(units, UNIT.values(), strict=True))
    side = {112: 7, 64: 4}[image_size]
    embedding = 2 * 512 + (512 * side**2 * 512 + 512) + 2 * 512
    assert STEM + kept + sum(WIDER.values()) + embedding == total
    with torch.device("meta"):
        model = IRForImageClassification(IRConfig.of_depth(depth, image_size=image_size, num_labels=530))
    assert sum(weight.numel() for weight in model.network.parameters()) == total
    assert sum(weight.numel() for weight in model.classifier.parameters()) == 512 * 530 + 530
    assert len(model.network.units) == {50: 24, 152: 50}[depth]


def test_leaves_stand_in_the_order_of_the_published_target() -> None:
    # Stem 3; the first unit: MaxPool, BN, conv, PReLU, conv, BN.
    leaves = [type(m).__name__ for m in tiny().modules() if next(m.children(), None) is None]
    unit = ["BatchNorm2d", "Conv2d", "PReLU", "Conv2d", "BatchNorm2d"]
    assert leaves == [
        "Conv2d", "BatchNorm2d", "PReLU",
        "MaxPool2d", *unit, "MaxPool2d", *unit, "Conv2d", "BatchNorm2d", *unit,
        "BatchNorm2d", "Dropout", "Flatten", "Linear", "BatchNorm1d", "Linear",
    ]  # fmt: skip


class Reference:
    """IR-50 of face.evoLVe by the names of its state dict, as plain functions in evaluation mode; no module of ours.

    An eighth as wide, which changes no name, so that the tests are quick.
    """

    UNITS = (3, 4, 14, 3)
    WIDTHS = (8, 16, 32, 64)

    def __init__(self, side: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self.state: dict[str, Tensor] = {}

        def norm(name: str, channels: int) -> None:
            self.state[f"{name}.weight"] = 1 + 0.1 * torch.randn(channels, generator=draw)
            self.state[f"{name}.bias"] = 0.1 * torch.randn(channels, generator=draw)
            self.state[f"{name}.running_mean"] = 0.1 * torch.randn(channels, generator=draw)
            self.state[f"{name}.running_var"] = 1 + torch.rand(channels, generator=draw)
            self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)

        def weight(name: str, *shape: int) -> None:
            scale = 0.4 / math.sqrt(math.prod(shape[1:]))  # small, so that the sums stay near 1
            self.state[f"{name}.weight"] = scale * torch.randn(*shape, generator=draw)

        weight("input_layer.0", 8, 3, 3, 3)
        norm("input_layer.1", 8)
        self.state["input_layer.2.weight"] = torch.rand(8, generator=draw)
        self.blocks: list[tuple[int, int, int]] = []
        c = 8
        for count, d in zip(self.UNITS, self.WIDTHS, strict=True):
            for i in range(count):
                self.blocks.append((c, d, 2 if i == 0 else 1))
                c = d
        for i, (c, d, _) in enumerate(self.blocks):
            if c != d:
                weight(f"body.{i}.shortcut_layer.0", d, c, 1, 1)
                norm(f"body.{i}.shortcut_layer.1", d)
            norm(f"body.{i}.res_layer.0", c)
            weight(f"body.{i}.res_layer.1", d, c, 3, 3)
            self.state[f"body.{i}.res_layer.2.weight"] = torch.rand(d, generator=draw)
            weight(f"body.{i}.res_layer.3", d, d, 3, 3)
            norm(f"body.{i}.res_layer.4", d)
        norm("output_layer.0", 64)
        weight("output_layer.3", 48, 64 * side**2)
        self.state["output_layer.3.bias"] = torch.randn(48, generator=draw)
        norm("output_layer.4", 48)

    def norm(self, name: str, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1) if x.ndim == 4 else (1, -1)
        mean, var, weight, bias = (
            self.state[f"{name}.{part}"].view(shape) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def prelu(self, name: str, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.state[f"{name}.weight"].view(1, -1, 1, 1) * x)

    def __call__(self, x: Tensor) -> Tensor:
        s = self.state
        x = self.prelu("input_layer.2", self.norm("input_layer.1", F.conv2d(x, s["input_layer.0.weight"], padding=1)))
        for i, (c, d, stride) in enumerate(self.blocks):
            name = f"body.{i}"
            short = x[:, :, ::stride, ::stride]
            if c != d:
                short = self.norm(f"{name}.shortcut_layer.1", F.conv2d(short, s[f"{name}.shortcut_layer.0.weight"]))
            y = F.conv2d(self.norm(f"{name}.res_layer.0", x), s[f"{name}.res_layer.1.weight"], padding=1)
            y = self.prelu(f"{name}.res_layer.2", y)
            y = F.conv2d(y, s[f"{name}.res_layer.3.weight"], stride=stride, padding=1)
            x = self.norm(f"{name}.res_layer.4", y) + short
        x = self.norm("output_layer.0", x).flatten(1)
        return self.norm("output_layer.4", x @ s["output_layer.3.weight"].T + s["output_layer.3.bias"])


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(side=2)  # of 32 pixels


def convert(source: Path, output_dir: Path, depth: int = 50, image_size: int = 32) -> IRForImageClassification:
    return convert_ir(source, output_dir, depth, image_size, hidden_sizes=Reference.WIDTHS, embedding_size=48)


def test_converted_weights_give_the_embeddings_of_the_reference(reference: Reference, tmp_path: Path) -> None:
    save_file(reference.state, tmp_path / "backbone.safetensors")
    convert(tmp_path / "backbone.safetensors", tmp_path / "out")
    model = IRForImageClassification.from_pretrained(tmp_path / "out").eval()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = reference(images), model.network(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert 0.1 < expected.std() < 10
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixels = HFTarget(model, processor).pixel_input(images)
    assert torch.equal(pixels, images)  # [0, 1] as they are, as the paper's low-resolution networks read them


def test_another_image_size_starts_the_embedding_anew(
    reference: Reference, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = {f"module.{name}": value for name, value in reference.state.items() if not name.endswith("tracked")}
    torch.save(state, tmp_path / "backbone.pth")
    model = convert(tmp_path / "backbone.pth", tmp_path / "out", image_size=64)
    assert "the embedding starts from random weights" in caplog.text
    own = model.network.state_dict()
    assert torch.equal(own["units.3.shortcut.0.weight"], reference.state["body.3.shortcut_layer.0.weight"])
    assert torch.equal(own["embedding.0.weight"], torch.ones(64))
    assert own["embedding.3.weight"].shape == (48, 64 * 4 * 4)
    again = convert(tmp_path / "backbone.pth", tmp_path / "again", image_size=64)
    assert torch.equal(again.network.state_dict()["embedding.3.weight"], own["embedding.3.weight"])


class Unsafe:
    def __reduce__(self) -> Any:
        return print, ("this must not run",)


def test_other_files_are_refused(reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(state: Any, message: str, depth: int = 50) -> None:
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=message):
            convert(tmp_path / "x.pth", tmp_path / "out", depth)
        assert not (tmp_path / "out").exists()

    refused(reference.state, r"holds no IR-152 of face.evoLVe: 296 weights missing \(units.11.shortcut", depth=152)
    refused(reference.state | {"body.0.res_layer.5.fc1.weight": torch.ones(1)}, r"1 unknown \(units.0.residual.5.fc1")
    refused(reference.state | {"input_layer.0.weight": torch.ones(8, 1, 3, 3)}, r"has the shape \(8, 1, 3, 3\)")
    refused({"epoch": 3, "state_dict": {}}, "no state dict of tensors")
    refused(Unsafe(), "cannot|can be loaded without running code")
    assert "must not run" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="no file"):
        convert_ir(tmp_path / "none.pth", tmp_path / "out", depth=50, image_size=32)
    (tmp_path / "x.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        convert_ir(None, tmp_path, depth=50, image_size=32)
    with pytest.raises(ValueError, match="depth must be one of 50, 100, 152, got 51"):
        convert_ir(None, tmp_path / "out", depth=51, image_size=32)


def test_wrong_settings_and_images_are_refused() -> None:
    with pytest.raises(ValueError, match="must have the same length"):
        IRConfig(depths=(1, 2))
    with pytest.raises(ValueError, match=r"dropout in \[0, 1\)"):
        IRConfig(dropout=1.0)
    with pytest.raises(ValueError, match="expected images of 3 x 32 x 32, got 3 x 64 x 64"):
        tiny()(torch.rand(1, 3, 64, 64))


def test_stock_model_loss_hidden_states_auto_class_and_pipeline(tmp_path: Path) -> None:
    model = tiny()
    images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
    out = model(images, labels=labels, output_hidden_states=True)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, labels))
    assert [tuple(maps.shape) for maps in out.hidden_states] == [
        (4, 8, 32, 32), (4, 8, 16, 16), (4, 8, 16, 16), (4, 16, 8, 8),
    ]  # fmt: skip
    assert model(images).hidden_states is None
    assert torch.equal(model(images, return_dict=False)[0], out.logits)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert type(again) is IRForImageClassification
    assert torch.equal(again(images).logits, out.logits)
    other = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert other.classifier.weight.shape == (3, 12)
    assert other.classifier.weight.isfinite().all()
    assert torch.equal(other.state_dict()["network.stem.0.weight"], model.state_dict()["network.stem.0.weight"])


@pytest.mark.parametrize("defense", DEFENSES.names())
def test_every_defense_stands_on_it(defense: str, tmp_path: Path) -> None:
    assert find_heads(IRForImageClassification, tiny_config()) == ["classifier"]
    model = defend(tiny(), defense).eval()
    assert model.feature_width == 12
    images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
    torch.manual_seed(1)
    logits = model(images).logits
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert type(again) is type(model)
    assert type(again.backbone) is IRForImageClassification
    torch.manual_seed(1)
    assert torch.equal(again(images).logits, logits)
    model.in_training_run = True
    if defense != "trap_mid":  # its trigger is drawn by the trainer
        model.train()(images, labels=labels).loss.backward()
        assert all(w.grad is not None for w in model.classification_head.parameters())


def test_the_layers_that_defenses_count() -> None:
    # 28 leaves with the head (3, 6, 6, 7, 5, 1), the first 14 frozen: the stem, a unit, most of another.
    frozen = set(Transfer(TransferConfig()).frozen(tiny()))
    names = [name for name, _ in tiny().named_parameters()]
    assert frozen == {name for name in names if name.startswith(("network.stem", "network.units.0"))} | {
        name for name in names if name.startswith(("network.units.1.residual.0", "network.units.1.residual.1"))
    } | {"network.units.1.residual.2.weight", "network.units.1.residual.3.weight"}  # fmt: skip
    # Convolutions and linear layers after the first: 2, 2, 3 in the units, embedding, classifier: L = 9, s = 2: those
    # with index 1, 3, 5.
    feature_hooks = DEFENSES.get("bido")(DEFENSES.get("bido").config_class()).feature_hooks(tiny())
    assert list(feature_hooks) == [
        "network.units.0.residual.3", "network.units.1.residual.3", "network.units.2.residual.1",
    ]  # fmt: skip


@pytest.mark.parametrize("image_size", [64, 112])
def test_as_target_of_attacks(image_size: int) -> None:
    faces = load_synthetic_faces(1, 2, image_size)
    images = (labeled_pixels(faces, image_size)[0].float() / 255).requires_grad_()
    config = tiny_config(depths=(1, 1, 1, 1), hidden_sizes=(4, 4, 8, 8), image_size=image_size, num_labels=5)
    model = CALoRForImageClassification.from_base(IRForImageClassification(config), rank=1)
    target = HFTarget(model)
    assert target.image_size == (image_size, image_size)
    logits = target(images)
    assert logits.shape == (2, 5)
    torch.testing.assert_close(target.head(target.features(images)), logits)
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert gradient.abs().max() > 0
