"""A differentiable renderer of drawn faces: identity and nuisance numbers in, images out."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

IDENTITY_NAMES = (
    "face_width", "face_length", "jaw", "skin_lightness", "skin_redness", "hair_lightness", "hair_redness",
    "hair_volume", "fringe", "hair_length", "ears", "eye_spacing", "eye_size", "eye_height", "iris_hue",
    "brow_thickness", "brow_tilt", "brow_height", "nose_length", "nose_width", "mouth_width", "lip_thickness",
    "lip_redness", "beard",
)  # fmt: skip
"""Numbers that make a person, each in [-1, 1]."""

NUISANCE_NAMES = (
    "yaw", "pitch", "roll", "scale", "shift_x", "shift_y", "light_side", "light_strength", "smile", "mouth_open",
    "blink", "background_hue", "background_lightness",
)  # fmt: skip
"""Numbers that make an image of the person, each in [-1, 1]."""

CHUNK = 128
"""Images rendered at a time, which bounds memory."""

_EDGE = 40.0  # steepness of the shapes' edges: about one pixel wide at 64 pixels


def render_faces(identity: Tensor, nuisance: Tensor, image_size: int = 64) -> Tensor:
    """Draw faces; every number changes the image smoothly, so gradients reach all of them.

    Args:
        identity: (batch, 24) in [-1, 1], named by :data:`IDENTITY_NAMES`.
        nuisance: (batch, 13) in [-1, 1], named by :data:`NUISANCE_NAMES`.
        image_size: Side of the square images in pixels.

    Returns:
        (batch, 3, image_size, image_size) in [0, 1]; an image depends on its own row alone.

    Raises:
        ValueError: wrong widths or different batch sizes.
    """
    expected = (len(identity), len(IDENTITY_NAMES)), (len(identity), len(NUISANCE_NAMES))
    if (tuple(identity.shape), tuple(nuisance.shape)) != expected:
        raise ValueError(
            f"expected identity {expected[0]} and nuisance {expected[1]}, got {tuple(identity.shape)} and "
            f"{tuple(nuisance.shape)}"
        )
    chunks = zip(identity.split(CHUNK), nuisance.split(CHUNK), strict=True)
    return torch.cat([_render(person, image, image_size) for person, image in chunks])


class _Grid(NamedTuple):
    """Face coordinates of every pixel, (batch, height, width): x to the right, y down, the face about [-1, 1]."""

    x: Tensor
    y: Tensor


def _render(identity: Tensor, nuisance: Tensor, image_size: int) -> Tensor:
    # (batch, 1, 1) each, by name
    p = {name: identity[:, i, None, None] for i, name in enumerate(IDENTITY_NAMES)}
    n = {name: nuisance[:, i, None, None] for i, name in enumerate(NUISANCE_NAMES)}
    outer = _outer_grid(n, image_size, identity)
    # Turning the head moves what lies on its front sideways and up; the outline stays.
    inner = _Grid(outer.x - 0.14 * n["yaw"], outer.y - 0.10 * n["pitch"])

    skin, hair = _skin(p), _hair(p)
    width, length = 0.56 + 0.10 * p["face_width"], 0.74 + 0.09 * p["face_length"]

    base = 0.55 + 0.25 * n["background_lightness"] + 0.10 * outer.y
    canvas = base.unsqueeze(1) + 0.16 * _hue(math.pi * n["background_hue"])
    canvas = _over(canvas, _hair_behind(p, outer, width), 0.85 * hair)
    neck = torch.sigmoid(_EDGE * (0.48 * width - outer.x.abs())) * torch.sigmoid(_EDGE * (outer.y - 0.4))
    canvas = _over(canvas, neck, 0.80 * skin)
    shirt = 0.45 + 0.25 * _hue(2.0 * n["background_hue"] + 2.4)
    canvas = _over(canvas, _ellipse(outer.x, outer.y - 1.35, 0.95, 0.42), shirt)
    size = 1 + 0.45 * p["ears"]
    ears = _ellipse(outer.x.abs() - width - 0.01, outer.y + 0.02, 0.085 * size, 0.15 * size)
    canvas = _over(canvas, ears, 0.92 * skin)
    face = _face(p, outer, width, length)
    canvas = _over(canvas, face, skin * _shade(n, inner, width))
    cheeks = 0.35 * _ellipse(inner.x.abs() - 0.33, inner.y - 0.22, 0.15, 0.11, 14.0)
    canvas = _over(canvas, face * cheeks, skin * _color(p, 1.02, 0.80, 0.78))
    beard = 0.85 * torch.sigmoid(7 * (p["beard"] - 0.45)) * _ellipse(inner.x, inner.y - 0.60, 0.46, 0.34, 12.0)
    canvas = _over(canvas, face * beard, 0.55 * hair + 0.35 * skin)
    canvas = _nose(canvas, p, inner, skin)
    canvas = _mouth(canvas, p, n, inner, skin)
    canvas = _eyes(canvas, p, n, inner, skin)
    canvas = _over(canvas, _brows(p, inner), 0.75 * hair)
    canvas = _over(canvas, _hair_front(p, outer, inner, width, length), hair * _shade(n, inner, width))
    return canvas.clamp(0, 1)


def _outer_grid(n: dict[str, Tensor], size: int, like: Tensor) -> _Grid:
    ticks = (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    scale = 0.94 + 0.10 * n["scale"]
    x, y = (x - 0.10 * n["shift_x"]) / scale, (y - 0.10 * n["shift_y"]) / scale
    angle = math.radians(12) * n["roll"]
    return _Grid(x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin())


# Shapes: coverage in (0, 1) with soft edges


def _ellipse(x: Tensor, y: Tensor, a: Tensor | float, b: Tensor | float, edge: float = _EDGE) -> Tensor:
    # 1 − r² falls off outside faster than a distance would, so soft edges of small shapes leave no halo.
    slope = 0.5 * edge * b
    slope = slope.clamp_min(3.5) if isinstance(slope, Tensor) else max(slope, 3.5)
    return torch.sigmoid(slope * (1 - (x / a).square() - (y / b).square()))


def _above(y: Tensor, level: Tensor | float, edge: float = _EDGE) -> Tensor:
    return torch.sigmoid(edge * (level - y))


def _over(canvas: Tensor, cover: Tensor, color: Tensor) -> Tensor:
    return canvas + cover.unsqueeze(1) * (color - canvas)


# Colors: (batch, 3, 1, 1)


def _color(p: dict[str, Tensor], red: float, green: float, blue: float) -> Tensor:
    like = p["skin_lightness"]
    return torch.tensor([red, green, blue], dtype=like.dtype, device=like.device).view(1, 3, 1, 1)


def _skin(p: dict[str, Tensor]) -> Tensor:
    light = 0.66 + 0.26 * p["skin_lightness"]
    red = 0.06 * p["skin_redness"]
    return torch.stack([light + 0.06 + red, 0.82 * light - 0.02, 0.68 * light - 0.04 - red], dim=1)


def _hair(p: dict[str, Tensor]) -> Tensor:
    light = 0.40 + 0.34 * p["hair_lightness"]
    red = 0.5 + 0.5 * p["hair_redness"]
    return torch.stack([light + 0.12 * red, light * (0.86 - 0.26 * red), light * (0.70 - 0.42 * red)], dim=1)


def _hue(turn: Tensor) -> Tensor:
    # Three cosines a third of a turn apart: a smooth circle of colors.
    return torch.stack([torch.cos(turn - shift) for shift in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)], dim=1)


def _shade(n: dict[str, Tensor], grid: _Grid, width: Tensor) -> Tensor:
    slope = (grid.x / width * n["light_side"] - 0.35 * grid.y).tanh()
    return (1 + (0.16 + 0.12 * n["light_strength"]) * slope).unsqueeze(1)


# Parts, back to front


def _hair_behind(p: dict[str, Tensor], grid: _Grid, width: Tensor) -> Tensor:
    volume = 0.13 + 0.09 * p["hair_volume"]
    top = _ellipse(grid.x, grid.y + 0.25, width + volume, 0.72 + volume)
    bottom = 0.25 + 0.62 * p["hair_length"]
    sides = _ellipse(grid.x, grid.y - 0.2, width + 0.8 * volume, 1.1)
    return torch.maximum(top, sides) * _above(grid.y, bottom, 18.0)


def _face(p: dict[str, Tensor], grid: _Grid, width: Tensor, length: Tensor) -> Tensor:
    # Below the eyes the sides draw in: much for a pointed jaw, little for a square one.
    taper = 1 - (0.20 - 0.16 * p["jaw"]) * torch.sigmoid(6 * (grid.y - 0.25)) * 1.6
    return _ellipse(grid.x / taper, grid.y - 0.02, width, length)


def _nose(canvas: Tensor, p: dict[str, Tensor], grid: _Grid, skin: Tensor) -> Tensor:
    tip, width = 0.15 + 0.07 * p["nose_length"], 0.10 + 0.035 * p["nose_width"]
    bridge = _ellipse(grid.x - 0.35 * width, grid.y - tip / 2, 0.35 * width, 0.12 + 0.5 * tip, 22.0)
    canvas = _over(canvas, 0.45 * bridge, 0.72 * skin)
    canvas = _over(canvas, 0.8 * _ellipse(grid.x, grid.y - tip, width, 0.055, 60.0), 0.80 * skin)
    return _over(canvas, _ellipse(grid.x.abs() - 0.5 * width, grid.y - tip - 0.02, 0.022, 0.018, 120.0), 0.40 * skin)


def _mouth(canvas: Tensor, p: dict[str, Tensor], n: dict[str, Tensor], grid: _Grid, skin: Tensor) -> Tensor:
    width = 0.21 + 0.06 * p["mouth_width"]
    thick = 0.055 + 0.022 * p["lip_thickness"]
    opening = 0.022 + 0.020 * n["mouth_open"]
    level = 0.43 - 0.28 * (0.35 + 0.65 * n["smile"]) * ((grid.x / width).square().clamp_max(1.5) - 0.5) * width
    red = torch.stack([p["lip_redness"], -p["lip_redness"], -0.5 * p["lip_redness"]], dim=1)
    lips = skin * _color(p, 0.92, 0.62, 0.62) + 0.10 * red
    canvas = _over(canvas, _ellipse(grid.x, grid.y - level, width, thick + opening, 90.0), lips)
    return _over(canvas, _ellipse(grid.x, grid.y - level, 0.8 * width, opening, 140.0), _color(p, 0.30, 0.10, 0.12))


def _eyes(canvas: Tensor, p: dict[str, Tensor], n: dict[str, Tensor], grid: _Grid, skin: Tensor) -> Tensor:
    x = grid.x.abs() - (0.235 + 0.045 * p["eye_spacing"])
    y = grid.y + 0.10 + 0.05 * p["eye_height"]
    size = 1 + 0.25 * p["eye_size"]
    height = 0.066 * size * (0.85 - 0.25 * n["blink"])
    canvas = _over(canvas, 0.5 * _ellipse(x, y + 0.01, 0.15 * size, height + 0.04, 40.0), 0.72 * skin)
    white = _ellipse(x, y, 0.115 * size, height, 110.0)
    canvas = _over(canvas, white, _color(p, 0.96, 0.96, 0.95))
    iris = 0.36 + 0.22 * _hue(1.9 * p["iris_hue"] + 2.1)
    look = grid.x.sign() * x - 0.02 * n["yaw"]
    canvas = _over(canvas, white * _ellipse(look, y, 0.055 * size, 0.055 * size, 110.0), iris)
    canvas = _over(canvas, white * _ellipse(look, y, 0.025 * size, 0.025 * size, 160.0), _color(p, 0.05, 0.05, 0.06))
    return _over(canvas, 0.8 * _ellipse(x, y + height, 0.125 * size, 0.018, 160.0), 0.30 * skin)


def _brows(p: dict[str, Tensor], grid: _Grid) -> Tensor:
    x = grid.x.abs() - (0.24 + 0.04 * p["eye_spacing"])
    y = grid.y + 0.27 + 0.05 * p["brow_height"] + 0.05 * p["eye_height"]
    y = y + 0.25 * p["brow_tilt"] * x - 1.6 * x**2
    return _ellipse(x, y, 0.15, 0.032 + 0.016 * p["brow_thickness"], 110.0)


def _hair_front(p: dict[str, Tensor], outer: _Grid, inner: _Grid, width: Tensor, length: Tensor) -> Tensor:
    volume = 0.06 + 0.05 * p["hair_volume"]
    skull = _ellipse(outer.x, outer.y + 0.02, width + volume, length + volume)
    line = -0.46 + 0.14 * p["fringe"] + 0.35 * inner.x**2
    return skull * _above(inner.y, line, 26.0)
