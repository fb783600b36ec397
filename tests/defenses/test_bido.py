"""BiDO: kernels and dependences against loops in float64, its gradient, its choice of layers."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calor_hf.core.outputs import Forward, Progress
from calor_hf.defenses.bido import (
    BiDO,
    BiDOConfig,
    center,
    gaussian_kernel,
    label_kernel,
    normalize,
    squared_distances,
)
from calor_hf.modeling import DefendedForImageClassification
from tests.tiny_models import tiny_base

END = Progress.at_end("fit")
LABEL_KERNELS = ("linear", "gaussian", "imq")
Matrix = NDArray[np.float64]


def literal_kernel(x: Tensor, of: Callable[[float, int], float]) -> Tensor:
    """(batch, batch) float64 kernel of squared distance and width, pair by pair; differentiable."""
    rows = x.double().flatten(1)
    entries = [[((u - v) ** 2).sum() for v in rows] for u in rows]
    return torch.stack([torch.stack([of(entry, rows.shape[1]) for entry in line]) for line in entries])  # type: ignore[misc]


def literal_gaussian(x: Tensor, sigma: float) -> Tensor:
    return literal_kernel(x, lambda d2, width: torch.exp(-d2 / (2 * sigma**2 * width)))  # type: ignore[arg-type, return-value]


def literal_label_kernel(name: str, labels: list[int], classes: int, sigma: float) -> Tensor:
    batch = len(labels)
    kernel = torch.zeros(batch, batch, dtype=torch.float64)
    for u in range(batch):
        for v in range(batch):
            d2 = 0.0 if labels[u] == labels[v] else 2.0
            kernel[u, v] = {
                "linear": 1.0 if labels[u] == labels[v] else 0.0,
                "gaussian": math.exp(-d2 / (2 * sigma**2 * classes)),
                "imq": 1 / math.sqrt(d2 + 1),
            }[name]
    return kernel


def literal_dependence(k: Tensor, l: Tensor, measure: str, double: bool) -> Tensor:  # noqa: E741
    batch = len(k)
    c = torch.eye(batch, dtype=torch.float64) - torch.ones(batch, batch, dtype=torch.float64) / batch
    if measure == "coco":
        product = (c @ k @ c) @ (c @ l @ c)
        return product.square().sum().sqrt().sqrt() / batch
    r = []
    for kernel in (k, l):
        centered = c @ kernel @ c if double else kernel @ c
        r.append(centered @ torch.linalg.inv(centered + 1e-5 * batch * torch.eye(batch, dtype=torch.float64)))
    total = torch.zeros((), dtype=torch.float64)
    for u in range(batch):
        for v in range(batch):
            total = total + r[0][u, v] * r[1][v, u]
    return total


def literal_terms(config: BiDOConfig, x: Tensor, hooked: tuple[Tensor, ...], labels: Tensor, classes: int) -> Any:
    double = config.centring == "double"
    k_x = literal_gaussian(x, config.sigma)
    k_y = literal_label_kernel(config.label_kernel, labels.tolist(), classes, config.sigma)
    on_input = on_label = torch.zeros((), dtype=torch.float64)
    for tap in hooked:
        k_h = literal_gaussian(tap, config.sigma)
        on_input = on_input + literal_dependence(k_x, k_h, config.measure, double)
        on_label = on_label + literal_dependence(k_h, k_y, config.measure, double)
    weight_in = config.lambda_in if config.lambda_in is not None else config.lambda_out / 10
    return weight_in * on_input, -config.lambda_out * on_label


def random_batch(batch: int = 7, classes: int = 4, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Forward:
    """Features of the scale of an image classifier's, each class around a center of its own."""
    labels = torch.arange(batch) % classes
    centers = [torch.randn(classes, width, dtype=dtype) for width in (30, 12, 5)]
    hooked = tuple(scale * (c[labels] + torch.randn(batch, c.shape[1], dtype=dtype)) for c in centers)
    return Forward(
        torch.randn(batch, classes, dtype=dtype),
        labels,
        inputs=torch.randn(batch, 3, 4, 4, dtype=dtype),
        hooked=tuple(tap.requires_grad_() for tap in hooked),
        training=True,
    )


def test_dependences_match_hand_computed_values() -> None:
    # Two samples at distance 1, width 1, σ = 1: k = e^(−1/2), the centered kernel is (1 − k) times the projection on
    # (1, −1)/√2, R is that projection times (1 − k) / (1 − k + 2·10⁻⁵); for the labels, 1 / (1 + 2·10⁻⁵).
    out = Forward(
        torch.zeros(2, 2, dtype=torch.float64),
        torch.tensor([0, 1]),
        inputs=torch.tensor([[0.0], [1.0]], dtype=torch.float64),
        hooked=(torch.tensor([[3.0], [2.0]], dtype=torch.float64),),
    )
    r = 0.3934693402873666 / (0.3934693402873666 + 2e-5)
    assert r == pytest.approx(0.99994917, abs=1e-8)
    for centring in ("one_sided", "double"):
        defense = BiDO(BiDOConfig(lambda_out=2.0, lambda_in=3.0, sigma=1.0, centring=centring))
        terms = defense.loss(out, END)
        assert terms["input"].item() == pytest.approx(3 * r**2, rel=1e-9)
        assert terms["label"].item() == pytest.approx(-2 * r / 1.00002, rel=1e-9)
    # COCO: the product of the centered kernels has Frobenius norm (1 − k)² and 1 − k.
    terms = BiDO(BiDOConfig(lambda_out=2.0, lambda_in=3.0, sigma=1.0, measure="coco")).loss(out, END)
    assert terms["input"].item() == pytest.approx(3 * 0.3934693402873666 / 2, rel=1e-9)
    assert terms["label"].item() == pytest.approx(-2 * math.sqrt(0.3934693402873666) / 2, rel=1e-9)
    assert terms["cross_entropy"].item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("sigma", [0.5, 5.0])
@pytest.mark.parametrize("shape", [(5, 1), (6, 40), (4, 3, 8, 8)])
def test_gaussian_kernel_is_the_formula(shape: tuple[int, ...], sigma: float) -> None:
    x = torch.randn(shape)
    found = gaussian_kernel(x, sigma)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, literal_gaussian(x, sigma), rtol=1e-12, atol=1e-14)
    # exp(−1 / (2 · 5² · 4)): four values, each half a unit apart.
    assert gaussian_kernel(torch.tensor([[0.0] * 4, [0.5] * 4]), 5.0)[0, 1].item() == pytest.approx(math.exp(-1 / 200))


def test_distances_far_from_zero_keep_their_digits() -> None:
    x = 1e6 + torch.randn(5, 20, dtype=torch.float64)
    expected = [[((u - v) ** 2).sum().item() for v in x] for u in x]
    np.testing.assert_allclose(squared_distances(x).numpy(), np.array(expected), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LABEL_KERNELS)
def test_label_kernels_are_the_formulas(name: str) -> None:
    labels = [0, 2, 1, 2, 0]
    y = torch.tensor([[1.0 if c == label else 0.0 for c in range(4)] for label in labels], dtype=torch.float64)
    torch.testing.assert_close(label_kernel(name, y, 5.0), literal_label_kernel(name, labels, 4, 5.0))
    # Different classes: 0, exp(−2 / (50 · 4)) = e^(−1/100), 1/√3.
    expected = {"linear": 0.0, "gaussian": 0.99004983, "imq": 0.57735027}[name]
    assert label_kernel(name, y, 5.0)[0, 1].item() == pytest.approx(expected, abs=1e-8)


def test_centring_is_the_product_with_the_centring_matrix() -> None:
    kernel = torch.randn(6, 6, dtype=torch.float64)
    c = np.eye(6) - np.ones((6, 6)) / 6
    np.testing.assert_allclose(center(kernel, double=False).numpy(), kernel.numpy() @ c, atol=1e-14)
    np.testing.assert_allclose(center(kernel, double=True).numpy(), c @ kernel.numpy() @ c, atol=1e-14)
    assert center(torch.tensor([[1.0, 0.0], [0.5, 1.5]]), double=False).tolist() == [[0.5, -0.5], [-0.5, 0.5]]


@pytest.mark.parametrize("double", [False, True])
def test_normalizing_is_the_product_with_the_inverse(double: bool) -> None:
    kernel = center(gaussian_kernel(torch.randn(8, 10), 1.0), double)
    k: Matrix = kernel.numpy()
    expected = k @ np.linalg.inv(k + 1e-5 * 8 * np.eye(8))
    np.testing.assert_allclose(normalize(kernel).numpy(), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("label_kernel", LABEL_KERNELS)
@pytest.mark.parametrize(
    ("measure", "centring"), [("hsic", "one_sided"), ("hsic", "double"), ("coco", "one_sided")], ids=str
)
def test_value_is_the_formula(measure: str, centring: str, label_kernel: str) -> None:
    config = BiDOConfig(lambda_out=0.7, lambda_in=0.3, measure=measure, centring=centring, label_kernel=label_kernel)
    for scale, sigma in ((0.1, 5.0), (1.0, 5.0), (10.0, 5.0), (1.0, 0.5)):
        config = dataclasses.replace(config, sigma=sigma)
        out = random_batch(scale=scale)
        terms = BiDO(config).loss(out, END)
        assert out.inputs is not None
        on_input, on_label = literal_terms(config, out.inputs, out.hooked, out.labels, 4)
        assert terms["input"].item() == pytest.approx(on_input.item(), rel=1e-6)
        assert terms["label"].item() == pytest.approx(on_label.item(), rel=1e-6)


@pytest.mark.parametrize("label_kernel", LABEL_KERNELS)
@pytest.mark.parametrize(
    ("measure", "centring"), [("hsic", "one_sided"), ("hsic", "double"), ("coco", "one_sided")], ids=str
)
def test_gradient_is_the_formulas(measure: str, centring: str, label_kernel: str) -> None:
    config = BiDOConfig(lambda_out=0.7, lambda_in=0.3, measure=measure, centring=centring, label_kernel=label_kernel)
    for dtype, scale in ((torch.float64, 1.0), (torch.float64, 5.0), (torch.float32, 1.0)):
        out = random_batch(scale=scale, dtype=dtype)
        out = dataclasses.replace(out, hooked=tuple(tap.detach().requires_grad_() for tap in out.hooked))
        terms = BiDO(config).loss(out, END)
        assert out.inputs is not None
        on_input, on_label = literal_terms(config, out.inputs, out.hooked, out.labels, 4)
        found = torch.autograd.grad(terms["input"] + terms["label"], out.hooked)
        expected = torch.autograd.grad(on_input + on_label, out.hooked)
        for ours, theirs in zip(found, expected, strict=True):
            assert theirs.norm() > 0
            assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


def test_gradient_is_the_slope_of_the_value() -> None:
    defense = BiDO(BiDOConfig(lambda_out=1.0))
    out = random_batch(batch=4, classes=2)

    def value(tap: Tensor) -> Tensor:
        terms = defense.loss(dataclasses.replace(out, hooked=(tap,)), END)
        return terms["input"] + terms["label"]

    tap = out.hooked[2].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(value(tap), tap)
    for i, j in ((0, 0), (1, 3), (3, 4)):
        step = torch.zeros_like(tap)
        step[i, j] = 1e-5
        with torch.no_grad():
            slope = (value(tap + step) - value(tap - step)).item() / 2e-5
        assert gradient[i, j].item() == pytest.approx(slope, rel=1e-4)


def test_weight_on_the_input_is_a_tenth_unless_given() -> None:
    out = random_batch()
    tenth = BiDO(BiDOConfig(lambda_out=0.5)).loss(out, END)["input"]
    torch.testing.assert_close(tenth, BiDO(BiDOConfig(lambda_out=0.5, lambda_in=0.05)).loss(out, END)["input"])
    assert BiDO(BiDOConfig(lambda_in=0.0)).loss(out, END)["input"].item() == 0


def test_dependence_is_at_most_one_less_than_the_batch() -> None:
    out = random_batch(batch=8, scale=20.0)
    assert out.inputs is not None
    same = dataclasses.replace(out, hooked=(100 * out.inputs.flatten(1).requires_grad_(),))
    value = BiDO(BiDOConfig(lambda_in=1.0, sigma=0.1)).loss(same, END)["input"].item()
    assert 6.9 < value <= 7


def test_evaluation_is_cross_entropy_alone() -> None:
    out = dataclasses.replace(random_batch(), hooked=(), training=False)
    assert list(BiDO(BiDOConfig()).loss(out, END)) == ["cross_entropy"]


@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_a_batch_of_one_class_has_no_dependence_on_the_label_and_a_finite_gradient(measure: str) -> None:
    out = random_batch(batch=4)
    out = dataclasses.replace(out, labels=torch.zeros(4, dtype=torch.int64))
    terms = BiDO(BiDOConfig(measure=measure)).loss(out, END)
    assert terms["label"].item() == pytest.approx(0, abs=1e-9)
    for gradient in torch.autograd.grad(terms["input"] + terms["label"], out.hooked):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_a_layer_that_says_nothing_has_a_finite_gradient(measure: str) -> None:
    dead = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)
    out = dataclasses.replace(random_batch(batch=4), hooked=(dead,))
    terms = BiDO(BiDOConfig(measure=measure)).loss(out, END)
    assert terms["input"].item() == pytest.approx(0, abs=1e-9)
    (gradient,) = torch.autograd.grad(terms["input"] + terms["label"], dead)
    assert gradient.isfinite().all()


def stack(convolutions: int, linears: int) -> nn.Sequential:
    """Convolutions, each with batch norm and ReLU, then linear layers: leaf modules 0, 3, 6 … and the last ones."""
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers += [nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()]
    return nn.Sequential(*layers, *(nn.Linear(3, 3) for _ in range(linears)))


@pytest.mark.parametrize(
    ("convolutions", "linears", "chosen"),
    [
        # 4 layers, 3 left (3, 6, 9), s = 1: the left ones 0, 1, 2.
        (3, 1, ["3", "6", "9"]),
        # 7 left (3, 6, 9, 12, 15, 18, 19), s = 2: 1, 3, 5.
        (6, 2, ["6", "12", "18"]),
        # 10 left, s = 2 still: 1, 3, 5.
        (10, 1, ["6", "12", "18"]),
        # 11 left, s = 3: 2, 5, 8.
        (11, 1, ["9", "18", "27"]),
        # Linear layers only: 5 left, s = 1.
        (0, 6, ["1", "2", "3"]),
    ],
)
def test_three_layers_at_even_distances(convolutions: int, linears: int, chosen: list[str]) -> None:
    assert BiDO(BiDOConfig()).feature_hooks(stack(convolutions, linears)) == chosen


def test_layers_of_a_resnet() -> None:
    # Convolutions after the first: two of the first stage; shortcut and two of the second; the classifier. s = 1.
    assert BiDO(BiDOConfig()).feature_hooks(tiny_base("resnet")) == [
        "resnet.encoder.stages.0.layers.0.layer.0.convolution",
        "resnet.encoder.stages.0.layers.0.layer.1.convolution",
        "resnet.encoder.stages.1.layers.0.shortcut.convolution",
    ]


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_layers_of_a_transformer(kind: str) -> None:
    # After the patch projection ViT has twice (query, key, value, output, two of the MLP) and the classifier, 13: s = 3
    # and numbers 2, 5, 8. Swin has the patch merging between the two: number 8 is the second block's key.
    base = tiny_base(kind)
    feature_hooks = BiDO(BiDOConfig()).feature_hooks(base)
    everything = [path for path, m in base.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(everything) == {"vit": 14, "swin": 15}[kind]
    assert list(feature_hooks) == [everything[index] for index in (3, 6, 9)]
    value, mlp, third = (path.rpartition(".")[2] for path in feature_hooks)
    assert value in ("v_proj", "value")
    assert mlp in ("fc2", "dense")
    assert third in {"vit": ("v_proj", "value"), "swin": ("k_proj", "key")}[kind]
    sizes = [base.get_submodule(path).weight.shape for path in feature_hooks]
    assert sizes == {"vit": [(16, 16), (16, 32), (16, 16)], "swin": [(8, 8), (8, 32), (16, 16)]}[kind]


@pytest.mark.parametrize("kind", ["resnet", "vit", "swin"])
def test_a_model_hands_over_the_inputs_of_its_layers(kind: str, images: Tensor) -> None:
    model = DefendedForImageClassification.from_base(tiny_base(kind), "bido", lambda_out=0.4)
    paths = model._hooked_paths
    labels = torch.tensor([0, 1, 2, 1])
    seen: dict[str, Tensor] = {}
    model.train()
    handles = [
        model.backbone.get_submodule(path).register_forward_hook(
            lambda module, args, output, path=path: seen.__setitem__(path, args[0].detach().reshape(4, -1))
        )
        for path in paths
    ]
    terms = model(images, labels=labels).loss_terms
    for handle in handles:
        handle.remove()
    on_input, on_label = literal_terms(
        BiDOConfig(lambda_out=0.4), images, tuple(seen[path] for path in paths), labels, 10
    )
    assert terms["input"].item() == pytest.approx(on_input.item(), rel=1e-5)
    assert terms["label"].item() == pytest.approx(on_label.item(), rel=1e-5)
    assert list(model.eval()(images, labels=labels).loss_terms) == ["cross_entropy"]


def test_layers_can_be_named() -> None:
    net = stack(2, 1)
    assert BiDO(BiDOConfig(layers=("3", "4"))).feature_hooks(net) == ("3", "4")
    assert BiDOConfig.from_dict({"layers": ["3", "4"]}).layers == ("3", "4")


def test_models_with_too_few_layers_are_refused() -> None:
    # 3 layers, 2 left, s = 0.
    message = (
        r"bido measures three hidden layers, but Sequential has 2 convolutions and linear layers after the first; "
        r"choose another defense, or name modules with layers="
    )
    with pytest.raises(ValueError, match=message):
        BiDO(BiDOConfig()).feature_hooks(stack(2, 1))


def test_unknown_layers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Sequential has no module '99', 'conv'; pass paths as in named_modules"):
        BiDO(BiDOConfig(layers=("0", "99", "conv"))).feature_hooks(stack(2, 1))
    with pytest.raises(ValueError, match=r"has no module 'no.such'"):
        DefendedForImageClassification.from_base(tiny_base("resnet"), "bido", layers=("no.such",))
    with pytest.raises(ValueError, match="Sequential has no module named in layers"):
        BiDO(BiDOConfig(layers=())).feature_hooks(stack(2, 1))


def test_soft_labels_are_refused() -> None:
    out = dataclasses.replace(random_batch(), labels=torch.full((7, 4), 0.25, dtype=torch.float64))
    with pytest.raises(ValueError, match="bido needs one whole-number label per image; switch mixup, cutmix"):
        BiDO(BiDOConfig()).loss(out, END)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambda_out": -0.1}, "lambda_out must be >= 0, got -0.1"),
        ({"lambda_out": math.inf}, "lambda_out must be a finite number >= 0, got inf"),
        ({"lambda_in": math.nan}, "lambda_in must be a finite number >= 0, got nan"),
        ({"sigma": 0.0}, "sigma must be > 0, got 0.0"),
        ({"sigma": math.nan}, "sigma must be a finite number > 0, got nan"),
        ({"measure": "mmd"}, "unknown measure 'mmd'; pass one of hsic, coco"),
        ({"label_kernel": "rbf"}, "unknown label_kernel 'rbf'; pass one of linear, gaussian, imq"),
        ({"centring": "none"}, "unknown centring 'none'; pass one of one_sided, double"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BiDOConfig(**settings)
