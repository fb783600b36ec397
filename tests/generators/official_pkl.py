"""Files as the official StyleGAN2 code writes them, from a network of ours; nothing of that code is needed."""

import collections
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calor_hf.generators.stylegan2 import StyleGAN2

SOURCE = "raise SystemExit('the source text in the file was run')"


class EasyDict(dict[str, Any]):
    """Stands in for dnnlib.util.EasyDict."""


class Persistent:
    """Stands in for a module of the official code: it asks to be rebuilt from its source text and attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.attributes = attributes

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": "Layer", "state": self.attributes}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,), None


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise AssertionError("the official code would be run")


@contextmanager
def official_names() -> Iterator[None]:
    """The stand-ins under the official names, for as long as a file is written."""
    made = {"torch_utils": None, "torch_utils.persistence": _reconstruct_persistent_obj, "dnnlib": None,
            "dnnlib.util": EasyDict}  # fmt: skip
    homes = [(part, part.__module__) for part in made.values() if part is not None]
    try:
        for name, part in made.items():
            sys.modules[name] = ModuleType(name)
            if part is not None:
                setattr(sys.modules[name], part.__name__, part)
                part.__module__ = name
        yield
    finally:
        for part, home in homes:
            part.__module__ = home
        for name in made:
            del sys.modules[name]


def persistent(weights: dict[str, Tensor], clamp: int | None = None) -> Persistent:
    """The module tree of weights by their dotted names."""
    own = {name: value for name, value in weights.items() if "." not in name}
    buffers = ("w_avg", "noise_const", "resample_filter")
    children: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        first, dot, rest = name.partition(".")
        if dot:
            children.setdefault(first, {})[rest] = value
    parameters = [(name, torch.nn.Parameter(value)) for name, value in own.items() if name not in buffers]
    return Persistent(
        training=False,
        _parameters=collections.OrderedDict([*parameters, ("nothing", None)]),
        _buffers=collections.OrderedDict((name, value) for name, value in own.items() if name in buffers),
        _non_persistent_buffers_set=set(),
        _modules=collections.OrderedDict((name, persistent(some, clamp)) for name, some in children.items()),
        _init_kwargs=EasyDict(conv_clamp=clamp),
        act_gain=np.sqrt(2),
        conv_clamp=clamp,
    )


def official_weights(generator: StyleGAN2) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dictionaries of the official generator and discriminator, filters included."""
    blur = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    weights = {name: value.clone() for name, value in generator.state_dict().items()}
    for name in list(weights):
        if name.endswith(("conv0.weight", "conv1.weight", "skip.weight")):
            weights[name.replace("weight", "resample_filter")] = torch.outer(blur, blur)
    discriminator = {
        name.removeprefix("discriminator."): value
        for name, value in weights.items()
        if name.startswith("discriminator.")
    }
    return {name: value for name, value in weights.items() if not name.startswith("discriminator.")}, discriminator


def write_official(file: Path, generator: StyleGAN2, protocol: int = 3, clamp: int | None = None, **more: Any) -> None:
    """The file that the official training would write of this generator; ``more`` replaces parts of it."""
    body, discriminator = official_weights(generator)
    networks = {"G": None, "D": persistent(discriminator, clamp), "G_ema": persistent(body, clamp), **more}
    with official_names():
        content = {**networks, "training_set_kwargs": EasyDict(path="x"), "augment_pipe": None}
        file.write_bytes(pickle.dumps(content, protocol=protocol))
