"""Second evaluation model of faces, without any network: hand-crafted features and a regularized linear discriminant.

    python -m benchmarks.handcrafted --data DATA --kept OUT/kept

prints its accuracy on test images of bolly100, also after a reduction to 32 pixels as priors of that side have it. It
sees Gabor magnitudes, gradient orientations, binary patterns and colors, learned from the training images alone.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.decoy_faces import SETTINGS, classes_of, dealt, loaded, number_of
from calor_hf.metrics.attack_accuracy import topk_correct

SIDE = 64
Feature = Callable[[Tensor], Tensor]
"""From (batch, 3, 64, 64) in [0, 1] to (batch, channels, height, width), a mirror image's map mirrored."""


def grey(images: Tensor) -> Tensor:
    """(batch, 1, height, width) mean of the channels."""
    return images.mean(1, keepdim=True)


def smoothed(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (batch, 1, height, width) by ``sigma`` pixels."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-((torch.arange(-reach, reach + 1) / sigma) ** 2) / 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    x = F.pad(x, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(x, kernel), kernel.mT)


def gradient_histograms(images: Tensor, bins: int = 18, cell: int = 8) -> Tensor:
    """Histograms of signed gradient directions in overlapping cells, normalized in blocks of 2 x 2 (HOG).

    Args:
        images: (batch, 3, height, width) in [0, 1]; each pixel counts with its steepest channel.
        bins: Directions of the full circle.
        cell: Side in pixels; cells are half of it apart.

    Returns:
        (batch, 4 * bins, rows, columns), of unit length along the channels.

    Source:
        Dalal and Triggs, "Histograms of oriented gradients for human detection", CVPR 2005: square-root compression,
        linear vote between two directions, L2-Hys normalization.
    """
    x = F.pad(images.sqrt(), (1, 1, 1, 1), mode="replicate")
    across, down = x[..., 1:-1, 2:] - x[..., 1:-1, :-2], x[..., 2:, 1:-1] - x[..., :-2, 1:-1]
    steepest = (across**2 + down**2).argmax(1, keepdim=True)
    across, down = across.gather(1, steepest), down.gather(1, steepest)
    place = torch.atan2(down, across).remainder(2 * math.pi) * bins / (2 * math.pi)
    low, length = place.floor(), (across**2 + down**2).sqrt()
    votes = length.new_zeros(len(x), bins, *length.shape[2:])
    votes.scatter_add_(1, low.long() % bins, length * (1 - place + low))
    votes.scatter_add_(1, (low.long() + 1) % bins, length * (place - low))
    cells = F.avg_pool2d(votes, cell, cell // 2)
    rows, columns = (side - 2 for side in cells.shape[2:])
    blocks = [cells[..., i : i + rows, j : j + columns] for i in (0, 2) for j in (0, 2)]
    return F.normalize(F.normalize(torch.cat(blocks, 1), dim=1).clamp(max=0.2), dim=1)


def uniform_codes() -> Tensor:
    """(256,) bin of each pattern of 8 bits: 58 with at most two changes around the circle, and 58 for all others."""
    bits = torch.arange(256)[:, None] >> torch.arange(8) & 1
    uniform = (bits != bits.roll(1, 1)).sum(1) <= 2
    return torch.where(uniform, uniform.cumsum(0) - 1, 58)


def binary_patterns(images: Tensor, radius: int) -> Tensor:
    """(batch, height, width) bins of uniform local binary patterns: which of 8 points around are not darker.

    Args:
        images: (batch, 1, height, width).
        radius: Radius of the circle in pixels; points between pixels are interpolated, and bit k is at k * 45 degrees,
            counterclockwise from the right.

    Source:
        Ojala, Pietikäinen and Mäenpää, "Multiresolution gray-scale and rotation invariant texture classification with
        local binary patterns", TPAMI 2002.
    """
    height, width = images.shape[2:]
    x, code = F.pad(images, (radius + 1,) * 4, mode="replicate"), torch.zeros(images.shape, dtype=torch.long)
    for bit in range(8):
        down, right = -radius * math.sin(bit * math.pi / 4), radius * math.cos(bit * math.pi / 4)
        top, left = math.floor(down + 1e-6), math.floor(right + 1e-6)
        point = torch.zeros_like(images)
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            share = (1 - abs(down - top - i)) * (1 - abs(right - left - j))
            if share > 1e-6:
                y, z = top + i + radius + 1, left + j + radius + 1
                point += share * x[..., y : y + height, z : z + width]
        code |= (point >= images - 1e-6).long() << bit
    return uniform_codes()[code].squeeze(1)


def pattern_histograms(images: Tensor, radius: int, cell: int = 12) -> Tensor:
    """(batch, 59, rows, columns) square roots of shares of each pattern in cells that are 4 pixels apart.

    Source:
        Ahonen, Hadid and Pietikäinen, "Face description with local binary patterns", TPAMI 2006; several radii and
        many overlapping cells: Chen et al., "Blessing of dimensionality", CVPR 2013.
    """
    codes = binary_patterns(smoothed(grey(images), radius / 3), radius)
    return F.avg_pool2d(F.one_hot(codes, 59).movedim(3, 1).float(), cell, 4).sqrt()


def gabor_magnitudes(images: Tensor, turns: int = 8, step: int = 4) -> Tensor:
    """(batch, 5 * turns, rows, columns) square roots of local energies at five wavelengths, 4 to 16 pixels.

    Args:
        images: (batch, 3, height, width) in [0, 1]; mean and contrast of each do not count.
        turns: Orientations of the half circle.
        step: Side of the squares in pixels whose magnitudes are averaged.

    Source:
        Liu and Wechsler, "Gabor feature based classification using the enhanced Fisher linear discriminant model",
        TIP 2002; filters of one octave, applied to the spectrum.
    """
    x, border = grey(images), 16
    x = (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True).clamp(min=1e-3)
    spectrum = torch.fft.fft2(F.pad(x, (border,) * 4, mode="reflect"))
    down, across = torch.meshgrid(*(torch.fft.fftfreq(side) for side in spectrum.shape[2:]), indexing="ij")
    found = []
    for wave in (4 * 2 ** (half / 2) for half in range(5)):
        for angle in (math.pi * turn / turns for turn in range(turns)):
            along = across * math.cos(angle) + down * math.sin(angle) - 1 / wave
            aside = down * math.cos(angle) - across * math.sin(angle)
            filtered = spectrum * torch.exp(-2 * (math.pi * 0.56 * wave) ** 2 * (along**2 + aside**2))
            energy = torch.fft.ifft2(filtered).abs()[..., border:-border, border:-border]
            found.append(F.avg_pool2d(energy, step))
    return torch.cat(found, 1).sqrt()


def colors(images: Tensor) -> Tensor:
    """(batch, 3, rows, columns) brightness against the image's mean, and two opponent colors, in 4 x 4 pixels."""
    red, green, blue = F.avg_pool2d(images, 4).unbind(1)
    bright = (red + green + blue) / 3
    opponents = (red - green) * 2**0.5, (red + green - 2 * blue) * (2 / 3) ** 0.5
    return torch.stack([bright - bright.mean((1, 2), keepdim=True), *opponents], 1)


FEATURES: dict[str, tuple[float, Feature]] = {
    "Gabor": (0.45, gabor_magnitudes), "HOG": (0.2, gradient_histograms), "colors": (0.05, colors),
    **{f"LBP {radius}": (0.1, partial(pattern_histograms, radius=radius)) for radius in (2, 3, 4)},
}  # fmt: skip
"""Share of the variance and function of each feature; the shares and ``RIDGE`` were tried out on training images."""
RIDGE = 0.3
"""Added to the variance in each direction, in units of the mean squared length of all features together."""


def described(feature: Feature, images: Tensor) -> Tensor:
    """(batch, numbers) sum of a feature of images and of their mirror images: its left half holds all of it."""

    def halved(some: Tensor) -> Tensor:
        both = feature(some) + feature(some.flip(3))
        return both[..., : (both.shape[3] + 1) // 2].flatten(1)

    return torch.cat([halved(some) for some in images.split(128)])


class Handcrafted:
    """Linear discriminant of all features: least squares with a ridge, towards one number per person.

    Attributes:
        parts: By feature, (numbers,) mean and (numbers, people) weights.

    Source:
        Hastie, Buja and Tibshirani, "Penalized discriminant analysis", Annals of Statistics 1995.
    """

    parts: dict[str, tuple[Tensor, Tensor]]

    def fit(self, images: Tensor, labels: Tensor) -> "Handcrafted":
        """Learn (count, 3, 64, 64) images in [0, 1] of the people ``labels``; solved in as many unknowns as images."""
        wanted = F.one_hot(labels).float()
        kernel, seen = RIDGE * torch.eye(len(images)), {}
        for name, (share, feature) in FEATURES.items():
            x = described(feature, images)
            mean = x.mean(0)
            x -= mean
            scale = share / x.square().sum(1).mean()
            kernel.addmm_(scale * x, x.T)
            seen[name] = mean, x, scale
        found = torch.cholesky_solve(wanted - wanted.mean(0), torch.linalg.cholesky(kernel))
        self.parts = {name: (mean, scale * x.T @ found) for name, (mean, x, scale) in seen.items()}
        return self

    def scores(self, images: Tensor) -> Tensor:
        """(batch, people) scores of (batch, 3, side, side) images in [0, 1]; the greatest is the nearest person's."""
        images = F.interpolate(images, (SIDE, SIDE), mode="bicubic", align_corners=False).clamp(0, 1)
        parts = self.parts.items()
        found = [(described(FEATURES[name][1], images) - mean) @ weights for name, (mean, weights) in parts]
        return torch.stack(found).sum(0)


def reduced(images: Tensor) -> Tensor:
    """(batch, 3, 32, 32) images as a prior of 32 pixels has them, from (batch, 3, 64, 64)."""
    return F.avg_pool2d(images, 2)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the accuracy among all people, and among the private ones of three partitions."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.handcrafted", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--data", type=Path, required=True, help="folder of the face sets")
    parser.add_argument("--kept", type=Path, required=True, help="folder of benchmarks.real_defenses, for the images")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    setting = SETTINGS["bolly100, k = 4"]
    people = loaded(setting.people, options.data, options.kept)
    model = Handcrafted().fit(people["train"] / 255, people["train/people"])
    owner = people["test/people"]
    for name, images in (("test images", people["test"] / 255), ("at 32 pixels", reduced(people["test"] / 255))):
        scores = model.scores(images)
        print(f"{name}: {100 * topk_correct(scores, owner).mean():.1f} % of {scores.shape[1]} people", flush=True)
        for seed in range(3):
            mine = classes_of(people, dealt(people, setting, seed), decoys=True).people[: setting.private]
            place = number_of(mine, owner)
            right = topk_correct(scores[place >= 0][:, mine], place[place >= 0])
            print(f"  {100 * right.mean():.1f} % of the {len(mine)} private ones of seed {seed}", flush=True)


if __name__ == "__main__":
    main()
