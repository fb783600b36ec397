"""StyleGAN2 against the paper's formulas, written out with loops, and what its attacks rely on."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calor_hf.generators._stylegan2_layers import activate, doubled, filtered
from calor_hf.generators.stylegan2 import StyleGAN2, StyleGAN2Config

SMALL: dict[str, Any] = {"image_size": 16, "width": 3, "max_channels": 5, "w_dim": 6, "z_dim": 4, "mapping_layers": 3}
Weights = dict[str, Any]


def small(seed: int = 0, dtype: torch.dtype = torch.float64, **settings: Any) -> StyleGAN2:
    """A random network whose biases and noise strengths are not zero."""
    torch.manual_seed(seed)
    made = StyleGAN2(StyleGAN2Config(**{**SMALL, **settings}))
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.endswith(("bias", "noise_strength")):
                weight.add_(torch.randn_like(weight), alpha=0.3)
        made.mapping.w_avg.add_(torch.randn_like(made.mapping.w_avg), alpha=0.2)
    return made.to(dtype).eval()


def weights_of(generator: StyleGAN2) -> Weights:
    return {name: value.double().numpy() for name, value in generator.state_dict().items()}


# The reference: numpy in float64, one image at a time, kernels moved by loops


def leak(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.2 * x) * math.sqrt(2)


def dense(weights: Weights, name: str, x: np.ndarray, rate: float = 1.0) -> np.ndarray:
    matrix, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    rows = [sum(rate * m * v for m, v in zip(row, x, strict=True)) / math.sqrt(len(x)) for row in matrix]
    y: np.ndarray = np.array(rows) + rate * bias
    return y


def correlate(x: np.ndarray, kernel: np.ndarray, stride: int = 1) -> np.ndarray:
    """(outputs, ...) of (inputs, h, w) with (outputs, inputs, k, k); no padding."""
    outputs, _, k, _ = kernel.shape
    height, width = ((side - k) // stride + 1 for side in x.shape[1:])
    y = np.zeros((outputs, height, width))
    for o in range(outputs):
        for i in range(height):
            for j in range(width):
                y[o, i, j] = (x[:, i * stride : i * stride + k, j * stride : j * stride + k] * kernel[o]).sum()
    return y


def padded(x: np.ndarray, before: int, after: int) -> np.ndarray:
    return np.pad(x, ((0, 0), (before, after), (before, after)))


def smooth(x: np.ndarray, gain: float = 1.0) -> np.ndarray:
    """Each channel with the outer product of (1, 3, 3, 1) / 8; no padding."""
    kernel = gain * np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    return np.concatenate([correlate(channel[None], kernel[None, None]) for channel in x])


def std(x: np.ndarray) -> np.ndarray:
    """A zero after every pixel, along both axes."""
    y = np.zeros((x.shape[0], 2 * x.shape[1], 2 * x.shape[2]))
    y[:, ::2, ::2] = x
    return y


def styled(weights: Weights, name: str, x: np.ndarray, w: np.ndarray, double: bool, noise: np.ndarray) -> np.ndarray:
    style = dense(weights, f"{name}.affine", w)
    kernel = weights[f"{name}.weight"] * style[None, :, None, None]
    kernel = kernel / np.sqrt((kernel**2).sum(axis=(1, 2, 3), keepdims=True) + 1e-8)
    if double:
        # Up-sample by zeros, convolve (a flipped kernel), blur; the whole padding of both is 1 + 2 before, 1 + 2 after.
        x = smooth(correlate(padded(std(x), 3, 2), kernel[:, :, ::-1, ::-1]), gain=4)
    else:
        x = correlate(padded(x, 1, 1), kernel)
    return leak(x + weights[f"{name}.noise_strength"] * noise + weights[f"{name}.bias"][:, None, None])


def reference(weights: Weights, styles: np.ndarray, noise: list[np.ndarray] | None = None) -> np.ndarray:
    """(3, side, side) in about [-1, 1] of one image from (num_styles, w_dim)."""
    side, layer = 4, 0
    image: np.ndarray | None = None
    x = weights["synthesis.b4.const"]
    while f"synthesis.b{side}.conv1.weight" in weights:
        name = f"synthesis.b{side}"
        for conv in ("conv0", "conv1") if side > 4 else ("conv1",):
            constant = weights[f"{name}.{conv}.noise_const"]
            x = styled(
                weights, f"{name}.{conv}", x, styles[layer], conv == "conv0", noise[layer] if noise else constant
            )
            layer += 1
        kernel = weights[f"{name}.torgb.weight"][:, :, 0, 0]
        scale = dense(weights, f"{name}.torgb.affine", styles[layer]) / math.sqrt(kernel.shape[1])
        rgb = np.einsum("oc,chw->ohw", kernel * scale, x) + weights[f"{name}.torgb.bias"][:, None, None]
        image = np.asarray(rgb) if image is None else rgb + smooth(padded(std(image), 2, 1), gain=4)
        side *= 2
    assert image is not None
    return image


def reference_discriminator(weights: Weights, images: np.ndarray, group: int) -> list[float]:
    """Logits of (batch, 3, side, side) in [-1, 1]; ``group`` neighbors are compared."""

    def conv(name: str, x: np.ndarray, halve: bool = False) -> np.ndarray:
        kernel = weights[f"discriminator.{name}.weight"]
        half, kernel = kernel.shape[-1] // 2, kernel / math.sqrt(kernel[0].size)
        y = correlate(smooth(padded(x, half + 1, half + 1)), kernel, 2) if halve else correlate(
            padded(x, half, half), kernel)  # fmt: skip
        bias = weights.get(f"discriminator.{name}.bias")
        return y if bias is None else leak(y + bias[:, None, None])

    maps = []
    for image in images:
        side = image.shape[-1]
        x = conv(f"b{side}.fromrgb", image)
        while side > 4:
            change = conv(f"b{side}.conv1", conv(f"b{side}.conv0", x), halve=True)
            x = (change + conv(f"b{side}.skip", x, halve=True)) / math.sqrt(2)
            side //= 2
        maps.append(x)
    logits = []
    for first in range(0, len(maps), group):
        some = np.stack(maps[first : first + group])
        deviation = np.sqrt(((some - some.mean(axis=0)) ** 2).mean(axis=0) + 1e-8).mean()
        for x in some:
            y = conv("b4.conv", np.concatenate([x, np.full((1, 4, 4), deviation)]))
            logits.append(
                dense(
                    weights, "discriminator.b4.out", leak(dense(weights, "discriminator.b4.fc", y.reshape(-1)))
                ).item()
            )
    return logits


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_images_are_those_of_the_formulas(dtype: torch.dtype, tolerance: float) -> None:
    generator = small(dtype=dtype)
    w = torch.randn(2, 6, dtype=dtype)
    weights = weights_of(generator)
    expected = np.stack([reference(weights, np.tile(row, (6, 1))) for row in w.double().numpy()])
    with torch.no_grad():
        _, raw = generator.synthesis(w)
        images = generator(w)
    assert np.abs(raw.double().numpy() - expected).max() < tolerance
    assert np.abs(images.double().numpy() - np.clip((expected + 1) / 2, 0, 1)).max() < tolerance
    assert np.abs(expected).max() > 0.5


def test_every_layer_has_its_own_style_and_noise() -> None:
    generator = small(1)
    assert generator.synthesis.sides == [4, 8, 8, 16, 16]
    styles = torch.randn(1, 6, 6, dtype=torch.float64)
    noise = [torch.randn(1, 1, side, side, dtype=torch.float64) for side in generator.synthesis.sides]
    expected = reference(weights_of(generator), styles[0].numpy(), [some[0, 0].numpy() for some in noise])
    with torch.no_grad():
        _, raw = generator.synthesis(styles, noise)
    assert np.abs(raw[0].numpy() - expected).max() < 1e-10
    with pytest.raises(ValueError, match="expected one style, or 6 for the layers, got 5"):
        generator(styles[:, :5])


@pytest.mark.parametrize("group", [1, 2, 4])
def test_logits_are_those_of_the_formulas(group: int) -> None:
    generator = small(2)
    images = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    expected = reference_discriminator(weights_of(generator), (2 * images - 1).numpy(), group)
    assert generator.realism(images, group=group).tolist() == pytest.approx(expected, abs=1e-10)
    assert generator.discriminator is not None
    whole = generator.discriminator(2 * images - 1)  # as in training: groups of four
    assert (whole.tolist() == pytest.approx(expected, abs=1e-10)) == (group == 4)
    assert len(generator.discriminator(images[:3])) == 3  # what four does not divide is evaluated singly


def test_styles_are_those_of_the_formulas_and_truncated() -> None:
    generator = small(3, truncation=0.7)
    weights = weights_of(generator)
    z = np.random.default_rng(5).standard_normal((2, 4))
    expected = []
    for row in z:
        x = row / math.sqrt((row**2).mean() + 1e-8)
        for index in range(3):
            x = leak(dense(weights, f"mapping.fc{index}", x, rate=0.01))
        expected.append(x)
    assert np.abs(generator.mapping(torch.from_numpy(z)).detach().numpy() - expected).max() < 1e-10
    truncated = 0.3 * weights["mapping.w_avg"] + 0.7 * np.stack(expected)
    latents = generator.sample_latents(2, np.random.default_rng(5))
    assert (latents.dtype, latents.requires_grad) == (torch.float64, False)
    assert np.abs(latents.numpy() - truncated).max() < 1e-10
    single = small(3, torch.float32, truncation=0.7)
    assert single.sample_latents(2, np.random.default_rng(5)).dtype == torch.float64
    z2 = torch.from_numpy(z).requires_grad_(True)
    assert torch.autograd.grad(generator.mapping(z2).sum(), z2)[0].abs().max() > 0


def test_the_mean_style_is_followed() -> None:
    mapping = small().mapping
    before = mapping.w_avg.clone()
    mapping.follow(torch.tensor([[1.0] * 6, [3.0] * 6], dtype=torch.float64))
    torch.testing.assert_close(mapping.w_avg, 0.995 * before + 0.005 * 2.0)


def test_filter_of_a_single_pixel() -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 64
    blur = torch.tensor([1.0, 3, 3, 1])
    expected = torch.zeros(5, 5)
    expected[:4, :4] = torch.outer(blur, blur)  # one zero more after than before: it reaches up and left
    assert torch.equal(filtered(x, 1, 2)[0, 0], expected)
    # Twice the side, the same mean away from the border.
    assert torch.equal(doubled(torch.ones(1, 1, 4, 4))[0, 0, 2:-2, 2:-2], torch.ones(4, 4))


def test_clamp_bounds_activations_by_its_gain() -> None:
    x = torch.tensor([[-100.0, 1.0, 100.0]])
    assert torch.equal(activate(x, torch.zeros(3), 0.5, clamp=10.0)[0, [0, 2]], torch.tensor([-5.0, 5.0]))
    assert activate(x, torch.zeros(3))[0, 1] == pytest.approx(math.sqrt(2))
    bounded, free = small(clamp=0.05), small()
    w = torch.randn(1, 6, dtype=torch.float64)
    assert bounded.synthesis(w)[0].abs().max() == 0.05
    assert free.synthesis(w)[0].abs().max() > 0.05


def test_overshoot_is_clamped_and_can_come_back() -> None:
    generator = small(4)
    with torch.no_grad():
        generator.get_parameter("synthesis.b16.torgb.bias").fill_(9.0)
    w = torch.randn(1, 6, dtype=torch.float64, requires_grad=True)
    image = generator(w)
    assert torch.equal(image, torch.ones_like(image))
    (slope,) = torch.autograd.grad(image.sum(), w)
    (unclamped,) = torch.autograd.grad(generator.synthesis(w)[1].sum() / 2, w)
    assert slope.abs().max() > 0
    torch.testing.assert_close(slope, unclamped)


def test_a_block_without_the_image_before_it_paints_less() -> None:
    generator = small()
    w = torch.randn(2, 6, dtype=torch.float64)
    hidden, image = generator.run_blocks(w, stop=2)
    assert image is not None
    assert image.shape == (2, 3, 8, 8)
    _, whole = generator.synthesis(w)
    _, last = generator.synthesis(w, None, range(2, 3), hidden)
    torch.testing.assert_close(last + doubled(image), whole)
    dropped = generator.run_blocks(w, hidden, 2)[1]
    torch.testing.assert_close(dropped, ((last + 1) / 2).clamp(0, 1))


def test_channels_of_the_official_networks() -> None:
    largest = StyleGAN2Config(image_size=1024, width=32)
    assert largest.channels() == [512, 512, 512, 512, 512, 256, 128, 64, 32]
    assert StyleGAN2Config(image_size=256).channels() == [512, 512, 512, 512, 256, 128, 64]


def test_as_many_weights_as_the_published_network() -> None:
    with torch.device("meta"):
        generator = StyleGAN2(StyleGAN2Config(image_size=1024, width=32))
    counts = {
        part: sum(weight.numel() for weight in generator.get_submodule(part).parameters())
        for part in ("mapping", "synthesis", "discriminator")
    }
    assert counts["mapping"] + counts["synthesis"] == 30_370_060
    assert counts["discriminator"] == 29_012_513


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 24}, "power of two"),
        ({"w_dim": 0}, "w_dim must be >= 1, got 0"),
        ({"mapping_layers": 0}, "mapping_layers must be >= 1"),
        ({"truncation": 1.5}, r"truncation must be in \[0, 1\], got 1.5"),
        ({"clamp": math.nan}, "clamp must be a finite number >= 0, got nan"),
        ({"clamp": -1.0}, "clamp must be >= 0, got -1.0"),
    ],
)
def test_impossible_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StyleGAN2Config(**settings)


def test_no_discriminator_no_realism() -> None:
    generator = small(discriminator=False)
    assert not generator.has_realism
    with pytest.raises(ValueError, match="no discriminator to evaluate realism"):
        generator.realism(torch.zeros(1, 3, 16, 16, dtype=torch.float64))


def test_noise_is_constant_in_training_mode_too() -> None:
    generator = small()
    w = torch.randn(2, 6, dtype=torch.float64)
    quiet: Tensor = generator(w)
    assert torch.equal(generator.train()(w), quiet)
