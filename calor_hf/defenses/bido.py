"""BiDO: hidden layers that depend little on the input and much on the label."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from calor_hf.core.config import MethodConfig, setting
from calor_hf.core.outputs import Forward, Progress
from calor_hf.defenses.base import DEFENSES, Defense, Strength, cross_entropy
from calor_hf.heads.find_head import NoHead

_MEASURED = (nn.Conv2d, nn.Linear, Conv1D, NoHead)  # Conv1D: the linear layer of GPT; NoHead: where the classifier was


@dataclass(frozen=True, kw_only=True)
class BiDOConfig(MethodConfig):
    """Settings of :class:`BiDO`; the defaults are CALoR's setting C and the released code's."""

    lambda_out: float = setting(
        0.5, "Weight of the dependence on the label, >= 0; its effect grows with the batch.", ge=0
    )
    lambda_in: float | None = setting(
        None, "Weight of the dependence on the input, >= 0; default a tenth of lambda_out.", ge=0
    )
    measure: str = setting("hsic", "Dependence: hsic (normalized), or coco.", choices=("hsic", "coco"))
    sigma: float = setting(5.0, "Width of the Gaussian kernels, > 0, in units of inputs.", gt=0)
    label_kernel: str = setting(
        "linear", "Kernel of the labels: linear, gaussian or imq.", choices=("linear", "gaussian", "imq")
    )
    centring: str = setting(
        "one_sided", "Of hsic: one_sided as in the released code, or double.", choices=("one_sided", "double")
    )
    layers: tuple[str, ...] | None = setting(
        None,
        "Paths in the base model of the modules whose inputs are measured; default: three convolutions or "
        "linear layers at even distances.",
    )

    def validate(self) -> None:
        """Convert the list that JSON gives to a tuple."""
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))


@DEFENSES.register("bido")
class BiDO(Defense[BiDOConfig]):
    """Bilateral dependency: hidden layers forget the input and keep the label (Peng et al., KDD 2022).

    The measured layers are inputs of convolutions and linear layers, flattened to one row per image (tokens and windows
    concatenated). A dependence is at most batch - 1, so its strength depends on the batch size, and runs in one and in
    several processes differ. In evaluation mode the loss is the cross-entropy only.

    Source:
        Peng, Liu, Zhang, Lan, Ye, Liu, Han, "Bilateral Dependency Optimization: Defending Against Model-inversion
        Attacks", KDD 2022, arXiv:2206.05483; the choice of layers as in MIBench.
    """

    config_class = BiDOConfig

    @classmethod
    def strength(cls, in_features: int, num_labels: int) -> Strength:
        """``lambda_out``, with ``lambda_in`` a tenth of it as in every published setting."""
        return Strength("lambda_out", 0.02, 50.0, log=True)

    def feature_hooks(self, backbone: nn.Module) -> Sequence[str]:
        """The layers named in the settings, or three by MIBench's rule.

        Of all convolutions and linear layers in order of definition, the classifier included and the first one
        excluded: of these L, with s = ⌊(L + 1) / 4⌋, those with index s − 1, 2s − 1 and 3s − 1.

        Raises:
            ValueError: a named layer does not exist, or there are fewer than three.
        """
        modules = dict(backbone.named_modules())
        if self.config.layers is not None:
            unknown = [path for path in self.config.layers if path not in modules]
            if unknown or not self.config.layers:
                raise ValueError(
                    f"{type(backbone).__name__} has no module {', '.join(map(repr, unknown)) or 'named in layers'}; "
                    "pass paths as in named_modules() of the base model"
                )
            return self.config.layers
        found = [path for path, module in modules.items() if isinstance(module, _MEASURED)][1:]
        stride = (len(found) + 1) // 4
        if stride < 1:
            raise ValueError(
                f"bido measures three hidden layers, but {type(backbone).__name__} has {len(found)} convolutions and "
                "linear layers after the first; choose another defense, or name modules with layers="
            )
        return [found[k * stride - 1] for k in (1, 2, 3)]

    def loss(self, out: Forward, progress: Progress) -> dict[str, Tensor]:
        """``cross_entropy``, and in training ``input`` and ``label``: the weighted dependences; in nats, dimensionless.

        Raises:
            ValueError: soft labels.
        """
        terms = {"cross_entropy": cross_entropy(out)}
        if not out.hooked or out.inputs is None:
            return terms
        c = self.config
        if out.labels.ndim != 1:
            raise ValueError("bido needs one whole-number label per image; switch mixup, cutmix and distillation off")
        # one_hot refuses negative labels; ignored ones become rows of zeros.
        label = F.one_hot(out.labels.clamp_min(0), out.logits.shape[1]) * (out.labels >= 0).unsqueeze(1)
        weight_in = c.lambda_in if c.lambda_in is not None else c.lambda_out / 10
        measure = self._coco if c.measure == "coco" else self._hsic
        hidden = [self._prepared(gaussian_kernel(features, c.sigma)) for features in out.hooked]
        x = self._prepared(gaussian_kernel(out.inputs, c.sigma))
        y = self._prepared(label_kernel(c.label_kernel, rows(label), c.sigma))
        on_input = torch.stack([measure(x, h) for h in hidden]).sum()
        on_label = torch.stack([measure(h, y) for h in hidden]).sum()
        dtype = terms["cross_entropy"].dtype
        return {**terms, "input": (weight_in * on_input).to(dtype), "label": (-c.lambda_out * on_label).to(dtype)}

    def _prepared(self, kernel: Tensor) -> Tensor:
        if self.config.measure == "coco":
            return center(kernel, double=True)
        return normalize(center(kernel, double=self.config.centring == "double"))

    @staticmethod
    def _hsic(a: Tensor, b: Tensor) -> Tensor:
        # The trace of a @ b, without the product.
        return (a * b.T).sum()

    @staticmethod
    def _coco(a: Tensor, b: Tensor) -> Tensor:
        square = (a @ b).square().sum()
        # The released code takes the root of the norm, so this takes two roots of its square.
        # A root has no gradient at 0, which a batch of one class or a constant layer gives.
        varies = square > 1e-20
        return torch.where(varies, torch.where(varies, square, 1.0).sqrt().sqrt(), 0.0) / len(a)


def rows(x: Tensor) -> Tensor:
    """(batch, values) float64 (float32 on devices without it), one row per sample."""
    # A kernel is almost all ones, and its centered rest is about as small as ε · batch in normalize: float32 and
    # autocast would leave few digits of it.
    return x.flatten(1).to(torch.float32 if x.device.type == "mps" else torch.float64)


def squared_distances(x: Tensor) -> Tensor:
    """(batch, batch) squared distances between the samples of (batch, ...)."""
    x = rows(x)
    x = x - x.mean(dim=0)  # keeps the distances, and makes the expansion below accurate
    gram = x @ x.T
    squares = gram.diagonal()
    # The released code takes the absolute value too: rounding leaves small negative distances.
    return (squares[:, None] + squares[None, :] - 2 * gram).abs()


def gaussian_kernel(x: Tensor, sigma: float) -> Tensor:
    """(batch, batch) kernel exp(−‖u − v‖² / (2σ² d)) of the d values of each sample."""
    return torch.exp(-squared_distances(x) / (2 * sigma**2 * x[0].numel()))


def label_kernel(name: str, y: Tensor, sigma: float) -> Tensor:
    """(batch, batch) kernel of one-hot labels: y·yᵀ (linear), gaussian, or 1/√(‖u − v‖² + 1) (imq)."""
    if name == "linear":
        return y @ y.T
    return gaussian_kernel(y, sigma) if name == "gaussian" else (squared_distances(y) + 1).rsqrt()


def center(kernel: Tensor, double: bool) -> Tensor:
    """K·C with C = I − 11ᵀ/batch, as the released code has it; or C·K·C."""
    kernel = kernel - kernel.mean(dim=1, keepdim=True)
    return kernel - kernel.mean(dim=0, keepdim=True) if double else kernel


def normalize(kernel: Tensor, epsilon: float = 1e-5) -> Tensor:
    """K (K + ε·batch·I)⁻¹, the regularized projection on the kernel's range."""
    shift = epsilon * len(kernel) * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    # The two factors commute, so a linear solve replaces the inverse of the released code.
    projected: Tensor = torch.linalg.solve(kernel + shift, kernel)
    return projected
