"""Official StyleGAN2 networks, or their weights alone, as a generator of ours."""

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from calor_hf.generators._official_pkl import StoredNetwork, read_official_pkl
from calor_hf.generators._stylegan2_layers import BLUR_FILTER
from calor_hf.generators.stylegan2 import StyleGAN2, StyleGAN2Config

logger = logging.getLogger(__name__)

GENERATOR_PREFIXES, DISCRIMINATOR_PREFIXES = ("G_ema.", "G.", ""), ("D.", "discriminator.")


def import_stylegan2(file: str | Path, crop: int | None = None) -> StyleGAN2:
    """A StyleGAN2 of NVlabs/stylegan2-ada-pytorch, in evaluation mode; the settings follow from the weights' shapes.

    Not tried on the official FFHQ file itself, only on small ones of the same make.

    Args:
        file: ``.pkl``: official file, read without running it (:mod:`calor_hf.generators._official_pkl`).
            ``.safetensors``, or else weights that ``torch.load(weights_only=True)`` reads: the ``state_dict()`` of the
            official generator, or of both networks with ``G_ema.`` and ``D.`` before the names.
        crop: Side of the central square of its images that is kept, in pixels. None means all; PPA and IF-GMI keep 800
            of the 1024 pixels of FFHQ, or 176 of 256.

    Returns:
        The generator, float32, on the CPU; with its discriminator if the file has one of the same widths, and there
        is no crop.

    Raises:
        ValueError: a crop of no or too many pixels, not such a file, a network with class labels, or of another
            architecture.
        OSError: it cannot be read.
    """
    file = Path(file)
    stored = read_official_pkl(file) if file.suffix == ".pkl" else _split(_read_weights(file))
    found = stored.get("G_ema") or stored.get("G")
    if found is None or not found.weights:
        raise ValueError(f"{file} holds no generator; expected weights named mapping.fc0.weight, synthesis.b4.const, …")
    try:
        config = replace(_config(found), official=True)
        weights = _renamed(found.weights, "")
        discriminator = _renamed(stored.get("D", StoredNetwork()).weights, "discriminator.")
        if problem := _misfit(weights, replace(config, discriminator=False)):
            raise ValueError(problem)
    except ValueError as error:
        raise ValueError(f"{file} is no StyleGAN2 with skips that this library knows: {error}") from error
    if crop is not None:
        if not 1 <= crop <= config.image_size:
            raise ValueError(f"crop must be 1 to the {config.image_size} pixels of {file}, got {crop}")
        generator = StyleGAN2(replace(config, discriminator=False, crop=crop))
        generator.load_state_dict(weights)
        return generator.eval()
    problem = _misfit(weights | discriminator, config)
    if problem and discriminator:
        logger.warning("the discriminator in %s is of another kind and is left out: %s", file, problem)
    generator = StyleGAN2(replace(config, discriminator=not problem))
    generator.load_state_dict(weights if problem else weights | discriminator)
    return generator.eval()


def _misfit(weights: dict[str, Tensor], config: StyleGAN2Config) -> str | None:
    """Return what does not fit the network of ``config``, or None if everything fits."""
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in StyleGAN2(config).state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            return f"{name} is {given.get(name, 'missing')}, expected {expected.get(name, 'no such weight')}"
    return None


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        tensors = file.suffix == ".safetensors"
        content: Any = load_file(file) if tensors else torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch and safetensors raise errors of many kinds for bytes that are not theirs
        kinds = ".pkl (official), .safetensors or weights of torch.save"
        raise ValueError(f"{file} is damaged or no file of weights ({error}); expected {kinds}") from error
    flat: dict[str, Any] = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        flat |= {f"{name}.{rest}": part for rest, part in value.items()} if isinstance(value, dict) else {name: value}
    return {str(name): value.float() for name, value in flat.items() if isinstance(value, Tensor)}


def _split(weights: dict[str, Tensor]) -> dict[str, StoredNetwork]:
    """Weights of generator and discriminator, told apart by what stands before their names."""

    def beginning(prefixes: tuple[str, ...], mark: str) -> dict[str, Tensor]:
        prefix = next((prefix for prefix in prefixes if any(name.startswith(prefix + mark) for name in weights)), None)
        if prefix is None:
            return {}
        others = () if prefix else DISCRIMINATOR_PREFIXES
        return {
            name.removeprefix(prefix): value
            for name, value in weights.items()
            if name.startswith(prefix) and not name.startswith(others)
        }

    generator, discriminator = beginning(GENERATOR_PREFIXES, "mapping."), beginning(DISCRIMINATOR_PREFIXES, "b4.")
    return {"G": StoredNetwork(generator), "D": StoredNetwork(discriminator)}


def _config(found: StoredNetwork) -> StyleGAN2Config:
    weights = found.weights
    if any(name.startswith("mapping.embed.") for name in weights):
        raise ValueError("it draws images of classes (mapping.embed); only networks without classes are read")
    layers = {int(match[1]) for name in weights if (match := re.fullmatch(r"mapping\.fc(\d+)\.weight", name))}
    sides = {int(match[1]) for name in weights if (match := re.match(r"synthesis\.b(\d+)\.conv1\.weight", name))}
    if not layers or not sides:
        raise ValueError("it has no mapping.fc0.weight or no synthesis.b4.conv1.weight")
    channels = [len(weights[f"synthesis.b{side}.conv1.weight"]) for side in sides]
    return StyleGAN2Config(
        image_size=max(sides),
        z_dim=weights[f"mapping.fc{min(layers)}.weight"].shape[1],
        w_dim=weights[f"mapping.fc{max(layers)}.weight"].shape[0],
        width=len(weights[f"synthesis.b{max(sides)}.conv1.weight"]),
        max_channels=max(channels),
        mapping_layers=len(layers),
        clamp=found.clamp,
    )


def _renamed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Weights under our names; the filters, which are not kept with the weights here, are compared and dropped."""
    blur = torch.tensor(BLUR_FILTER) / sum(BLUR_FILTER)
    kept = {}
    for name, value in weights.items():
        if not name.endswith("resample_filter"):
            kept[prefix + name] = value.float()
        elif value.shape != (4, 4) or not torch.allclose(value.float(), torch.outer(blur, blur)):
            raise ValueError(f"{name} is another filter than (1, 3, 3, 1)")
    return kept
