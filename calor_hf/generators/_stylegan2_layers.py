"""Layers of StyleGAN2: equalized learning rates, modulated convolutions, resampling through a small filter.

Modules and weights have the names of the official networks, so that reading one of these renames nothing.

Source:
    Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020, arXiv:1912.04958;
    NVlabs/stylegan2-ada-pytorch `training/networks.py`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLUR_FILTER = (1.0, 3.0, 3.0, 1.0)
"""The low-pass filter along each axis, before it is scaled to a sum of 1."""
EPSILON = 1e-8


def activate(x: Tensor, bias: Tensor, gain: float = 1.0, clamp: float = 0.0) -> Tensor:
    """Leaky ReLU (0.2) of ``x`` + ``bias`` times ``gain`` · √2, which keeps the variance.

    Args:
        x: (batch, channels, ...).
        bias: (channels,).
        gain: Factor in addition to √2.
        clamp: Bound of the result's size before ``gain``; 0: none.
    """
    y = F.leaky_relu(x + bias.view(-1, *[1] * (x.ndim - 2)), 0.2) * (math.sqrt(2) * gain)
    return y.clamp(-clamp * gain, clamp * gain) if clamp else y


def filtered(x: Tensor, before: int, after: int, stride: int = 1, gain: float = 1.0) -> Tensor:
    """Low-pass filter each channel, after adding ``before`` and ``after`` zeros at both ends of each axis.

    Args:
        x: (batch, channels, height, width).
        before: Zeros above and on the left.
        after: Zeros below and on the right.
        stride: Step between the pixels that are kept.
        gain: Sum of the filter.

    Returns:
        (batch, channels, (height + before + after - 3) / stride, ...), rounded up.
    """
    blur = x.new_tensor(BLUR_FILTER) / sum(BLUR_FILTER)
    channels = x.shape[1]
    kernel = (gain * torch.outer(blur, blur)).expand(channels, 1, -1, -1)
    return F.conv2d(F.pad(x, (before, after, before, after)), kernel, stride=stride, groups=channels)


def doubled(image: Tensor) -> Tensor:
    """(batch, channels, 2 · height, 2 · width): zeros between the pixels, and the filter over all."""
    batch, channels, height, width = image.shape
    spread = image.new_zeros(batch, channels, height, 2, width, 2)
    spread[:, :, :, 0, :, 0] = image
    return filtered(spread.view(batch, channels, 2 * height, 2 * width), 2, 1, gain=4)


class Dense(nn.Module):
    """Linear layer whose weights have unit variance and are scaled when used.

    Args:
        inputs: Width of what enters.
        outputs: Width of what leaves.
        rate: Factor of the learning rate.
        bias: Start of the bias.
        active: Whether a leaky ReLU follows.
    """

    def __init__(self, inputs: int, outputs: int, rate: float = 1.0, bias: float = 0.0, active: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.rate, self.active = rate, active

    def forward(self, x: Tensor) -> Tensor:
        """(batch, outputs) from (batch, inputs)."""
        y = x @ (self.weight * (self.rate / math.sqrt(self.weight.shape[1]))).T
        return activate(y, self.bias * self.rate) if self.active else y + self.bias * self.rate


class PlainConv(nn.Module):
    """Convolution of the discriminator; a halving one filters first.

    Args:
        inputs: Channels that enter.
        outputs: Channels that leave.
        kernel: Side of the kernel, 1 or 3.
        halve: Whether the side is halved.
        active: Whether a bias and a leaky ReLU follow.
        clamp: As of :func:`activate`.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, halve: bool = False, active: bool = True, clamp: float = 0.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if active else None
        self.halve, self.clamp = halve, clamp

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """(batch, outputs, side, side) or half the side; ``gain`` multiplies the result."""
        kernel = self.weight.shape[-1]
        weight = self.weight / math.sqrt(self.weight[0].numel())
        if not self.halve:
            y = F.conv2d(x, weight, padding=kernel // 2)
        elif kernel == 1:  # pixels that no one keeps are not made
            y = F.conv2d(filtered(x, 1, 1, stride=2), weight)
        else:
            y = F.conv2d(filtered(x, 2, 2), weight, stride=2)
        return y * gain if self.bias is None else activate(y, self.bias, gain, self.clamp)


class StyledConv(nn.Module):
    """Convolution whose input channels are scaled by the style and whose output is brought back to unit variance.

    The scaling is done on the maps before and after one convolution that all images share, which equals the authors'
    own kernel for each image. Fixed noise is added, scaled by one learned number.

    Args:
        inputs: Channels that enter.
        outputs: Channels that leave.
        w_dim: Width of the style's source.
        side: Side of the output map in pixels.
        up: Whether the side is doubled.
        clamp: As of :func:`activate`.
    """

    noise_const: Tensor

    def __init__(self, inputs: int, outputs: int, w_dim: int, side: int, up: bool = False, clamp: float = 0.0) -> None:
        super().__init__()
        self.affine = Dense(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("noise_const", torch.randn(side, side))
        self.up, self.clamp = up, clamp

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None = None) -> Tensor:
        """(batch, outputs, side, side).

        Args:
            x: (batch, inputs, side, side), or half the side if it is doubled.
            w: (batch, w_dim).
            noise: (batch, 1, side, side); None means the constant one.
        """
        style = self.affine(w)
        variance = style.square() @ self.weight.square().sum(dim=(2, 3)).T
        x = x * style[:, :, None, None]
        if self.up:
            x = F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2)
            x = filtered(x, 1, 1, gain=4)
        else:
            x = F.conv2d(x, self.weight, padding=1)
        x = x * (variance + EPSILON).rsqrt()[:, :, None, None]
        return activate(x + (self.noise_const if noise is None else noise) * self.noise_strength, self.bias, 1.0,
                        self.clamp)  # fmt: skip


class ToRGB(nn.Module):
    """Contribution of a map to the image: 1 × 1 convolution with styled inputs, without demodulation."""

    def __init__(self, inputs: int, w_dim: int, clamp: float = 0.0) -> None:
        super().__init__()
        self.affine = Dense(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(3, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))
        self.clamp = clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(batch, 3, side, side) from (batch, inputs, side, side) and (batch, w_dim)."""
        style = self.affine(w) / math.sqrt(self.weight.shape[1])
        rgb = F.conv2d(x * style[:, :, None, None], self.weight, self.bias)
        return rgb.clamp(-self.clamp, self.clamp) if self.clamp else rgb
