"""Conversion of face.evoLVe weights to a folder for ``from_pretrained``."""

import logging
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from examples.paper.configuration_ir import IRConfig
from examples.paper.modeling_ir import IRForImageClassification

logger = logging.getLogger(f"calor_hf.{__name__}")  # log_to_terminal shows the messages of calor_hf

_NAMES = (
    (r"^module\.", ""),  # saved from DataParallel
    (r"^input_layer\.", "stem."),
    (r"^body\.", "units."),
    (r"^output_layer\.", "embedding."),
    (r"\.shortcut_layer\.", ".shortcut."),
    (r"\.res_layer\.", ".residual."),
)


def convert_ir(
    source: str | Path | None, output_dir: str | Path, depth: int, image_size: int, seed: int = 0, **settings: Any
) -> IRForImageClassification:
    """Save a face.evoLVe backbone, or random weights, as a base model with its image processor.

    The classifier starts from random weights. So does the embedding if ``image_size`` differs from that of the
    backbone, since it reads all positions of the last maps; stem and units, which do not depend on the size, are kept,
    as in the KED code. Images are not normalized, as in the paper.

    Args:
        source: State dict as ``.pth`` or ``.pt`` (loaded without running code) or ``.safetensors``. None means random
            weights.
        output_dir: New or empty folder.
        depth: 50, 100 or 152.
        image_size: Side of the images in pixels.
        seed: Seed of the random weights.
        settings: Other settings of :class:`IRConfig`.

    Raises:
        FileExistsError: ``output_dir`` is not empty.
        FileNotFoundError: ``source`` does not exist.
        ValueError: the file holds another network; nothing is written.
    """
    folder = Path(output_dir)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"the output folder {folder} is not empty; pass another one")
    weights = None if source is None else _read(Path(source))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = IRForImageClassification(IRConfig.of_depth(depth, image_size=image_size, **settings))
    model.eval()
    if weights is not None:
        _load(model, weights, f"IR-{depth}", str(source))
    model.save_pretrained(folder)
    # Always PIL, so that images do not depend on whether torchvision is installed.
    kind = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
    kind(size={"height": image_size, "width": image_size}, do_normalize=False).save_pretrained(folder)
    return model


def _read(source: Path) -> dict[str, Tensor]:
    if not source.is_file():
        raise FileNotFoundError(f"no file {source}; pass a state dict of face.evoLVe")
    try:
        found = (
            load_file(source)
            if source.suffix == ".safetensors"
            else torch.load(source, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # torch, pickle and safetensors raise many types
        raise ValueError(
            f"{source} is not a state dict that can be loaded without running code ({type(error).__name__}); load it "
            "in an environment you trust and save its state_dict() as safetensors"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{source} holds no state dict of tensors; save the backbone's state_dict() alone")
    return {_renamed(name): value for name, value in found.items()}


def _renamed(name: str) -> str:
    for pattern, ours in _NAMES:
        name = re.sub(pattern, ours, name)
    return name


def _load(model: IRForImageClassification, weights: dict[str, Tensor], name: str, source: str) -> None:
    own = model.network.state_dict()
    # Files from before PyTorch 0.4.1 lack these counters, which only a cumulative average would use.
    missing = [key for key in own.keys() - weights.keys() if not key.endswith("num_batches_tracked")]
    unknown = sorted(weights.keys() - own.keys())
    if missing or unknown:
        parts = [f"{len(missing)} weights missing ({', '.join(sorted(missing)[:3])})"] if missing else []
        parts += [f"{len(unknown)} unknown ({', '.join(unknown[:3])})"] if unknown else []
        raise ValueError(f"{source} holds no {name} of face.evoLVe: {'; '.join(parts)}; pass the depth of its network")
    linear = "embedding.3.weight"
    fresh = weights[linear].shape != own[linear].shape
    kept = {key: value for key, value in weights.items() if not (fresh and key.startswith("embedding."))}
    wrong = [key for key, value in kept.items() if value.shape != own[key].shape]
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"{source} holds no {name} of face.evoLVe: {key} has the shape {tuple(kept[key].shape)}, expected "
            f"{tuple(own[key].shape)}"
        )
    if fresh:
        logger.warning(
            "%s was trained at another image size than %d pixels: stem and units are kept, the embedding starts from "
            "random weights and must be trained",
            source,
            model.config.image_size,
        )
    model.network.load_state_dict({**own, **kept})
