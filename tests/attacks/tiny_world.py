"""A target, generators of every kind and attacks with a tiny budget: 16 pixels, five classes."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from calor_hf.attacks import ATTACKS, Attack, GradientAttack
from calor_hf.core.reconstruction import Cost
from calor_hf.generators import GENERATORS, Generator
from calor_hf.modeling import defend
from calor_hf.targets.base import Target
from calor_hf.targets.hf_target import HFTarget
from calor_hf.targets.module_target import ModuleTarget
from tests.tiny_models import tiny_base

SIDE, CLASSES, STEPS = 16, 5, 8

PRIORS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in GENERATORS.names()},  # smaller, or trained otherwise:
    "dcgan": ("dcgan", {"width": 4}),
    "dcgan without discriminator": ("dcgan", {"width": 4, "discriminator": "none"}),
    "dcgan of ked": ("dcgan", {"width": 4, "discriminator": "ked", "num_classes": CLASSES}),
    "conditional": ("conditional", {"width": 4, "num_classes": CLASSES}),
    "flow": ("flow", {"width": 4, "decode_steps": 2}),
    "diffusers": (
        "diffusers",
        {
            "decode_steps": 2,
            "network": '{"block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1, '
            '"down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"]}',
        },
    ),
    "ridge": ("ridge", {"latent_dim": 6}),
    "stylegan2": ("stylegan2", {"width": 4, "w_dim": 8, "z_dim": 6, "mapping_layers": 2}),
}
# Settings that an attack cannot do without here, and variants worth a contract of their own.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in ATTACKS.names()}
VARIANTS["lomma"] = ("lomma", {"students": ()})
VARIANTS["lomma on gmi"] = ("lomma", {"students": (), "base": "gmi", "feature_noise": True})
VARIANTS["gmi, best of two starts"] = ("gmi", {"restarts": 2, "keep": "best", "nesterov": False, "clip": None})
VARIANTS["ked, three draws"] = ("ked", {"draws": 3, "start_mean": "random", "clip": 1.0})
VARIANTS["plg, chosen starts"] = ("plg", {"initial_candidates": 40, "keep": "best"})
VARIANTS["plg, noisy copies"] = ("plg", {"smoothing": "noise", "samples": 2, "views": 1, "steps": 6})
VARIANTS["gmi, viewed copies"] = ("gmi", {"smoothing": "views", "samples": 2, "temperature": 2.0, "steps": 6})
VARIANTS["ppa"] = ("ppa", {"initial_candidates": 40, "restarts": 2, "final_views": 3, "steps": 8})
VARIANTS["mirror"] = ("mirror", {"initial_candidates": 40, "bound_samples": 50, "steps": 8})
VARIANTS["mirror, p space"] = (
    "mirror",
    {"initial_candidates": 0, "bound_samples": 50, "p_space": "on", "shared_views": False, "steps": 8},
)
VARIANTS["if_gmi"] = ("if_gmi", {"initial_candidates": 40, "steps": 4, "later_steps": 4})
VARIANTS["if_gmi, image carried"] = (
    "if_gmi",
    {"initial_candidates": 40, "steps": 4, "later_steps": 2, "carry_skip": True, "shared_views": False},
)
VARIANTS["bypass"] = ("bypass", {"initial_candidates": 40, "steps": 6})
VARIANTS["bypass, features"] = ("bypass", {"initial_candidates": 0, "space": "features", "views": 0, "steps": 6})
VARIANTS["trapdoor"] = ("trapdoor", {"trigger_images": 6, "trigger_steps": 3, "views": 1, "steps": 6})
VARIANTS["brep as mibench"] = ("brep", {**ATTACKS.get("brep").presets["calor"]})
VARIANTS["rlb with slow discriminators"] = (
    "rlb",
    {"terminal": False, "shared_noise": False, "mean_log_probability": False},
)
VARIANTS["mirror_blackbox in p space"] = ("mirror_blackbox", {"p_space": "on"})
WHITE_BOX = [variant for variant, (name, _) in VARIANTS.items() if issubclass(ATTACKS.get(name), GradientAttack)]
BLACK_BOX = [variant for variant, (name, _) in VARIANTS.items() if ATTACKS.get(name).access != "white_box"]

# Settings that make an attack small in more than the length that a budget scales.
SMALL: dict[str, dict[str, Any]] = {
    "brep": {"iterations": 6, "directions": 4, "search": 300, "most_refusals": 4, "most_growths": 3},
    "rlb": {"episodes": 8, "batch_size": 4},
    "mirror_blackbox": {"generations": 3, "population": 8, "candidates": 300, "bound_samples": 40},
    "auto": {
        "members": (
            "plg:steps=3,initial_candidates=40,views=1",
            "brep:iterations=3,directions=4,search=300",
            "bypass:steps=2,initial_candidates=40",
            "gmi:steps=4",
        )
    },
    "surrogate": {
        "attack": "plg:steps=6",
        "students": ("target",),
        "student_eps": 0.03,
        "student_epochs": 1,
        "student_batch": 4,
    },
    "lokt": {"steps": 6, "student_images": 4, "student_epochs": 1, "student_batch": 8},
}


def prior_of(variant: str, usual: str = "dcgan") -> Generator[Any]:
    """The usual generator, or one that the attack takes."""
    return tiny_generator("flow" if VARIANTS[variant][0] == "sfmi" else usual)


def length_of(kind: type[Attack[Any]]) -> str:
    """The setting that says how long an attack works: the first whole number that a budget scales."""
    settings: list[dict[str, Any]] = [kind(kind.configure(budget=b)).config.to_dict() for b in (1, 0.5)]
    whole, half = settings
    return next(name for name, value in whole.items() if isinstance(value, int) and half[name] != value)


# Built once for all questions of `fits`, which change nothing in them: every run of the tests collects these files.
_target_of_all = cache(lambda: tiny_target())
_generator_of_all = cache(lambda kind: tiny_generator(kind))


@cache
def fits(variant: str, prior: str) -> bool:
    """Whether the attack takes the generator, such as if_gmi one that can be taken apart."""
    attack = tiny_attack(variant)
    try:
        attack.check(attack.view_of(_target_of_all()), _generator_of_all(prior))
    except ValueError as error:
        return "call prepare" in str(error)
    return True


@cache
def _built_target(defense: str | None, dtype: torch.dtype, settings: tuple[tuple[str, Any], ...]) -> HFTarget:
    base = tiny_base("resnet", CLASSES)
    model = base if defense is None else defend(base, defense, **dict(settings))
    return HFTarget(model.to(dtype), image_size=SIDE)


def tiny_target(defense: str | None = None, dtype: torch.dtype = torch.float64, **settings: Any) -> HFTarget:
    """A random ResNet of five classes, defended or not; a copy of one that is built once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        built = _built_target(defense, dtype, tuple(settings.items()))
    torch.manual_seed(3)  # what a test draws next does not depend on who built the target
    return copy.deepcopy(built)


def tiny_generator(kind: str, dtype: torch.dtype = torch.float64) -> Generator[Any]:
    """A random generator of 16 pixels; ``kind`` is a key of :data:`PRIORS`."""
    torch.manual_seed(4)
    name, settings = PRIORS[kind]
    registered: Any = GENERATORS.get(name)
    made: Generator[Any] = registered(registered.config_class(image_size=SIDE, **settings)).to(dtype).eval()
    with torch.no_grad():  # as a trained one, not all gray
        for module in made.modules():
            if isinstance(module, torch.nn.ConvTranspose2d):
                module.weight *= 2
    return made


def tiny_attack(variant: str, **settings: Any) -> Attack[Any]:
    """An attack of few steps; ``variant`` is a key of :data:`VARIANTS`."""
    name, own = VARIANTS[variant]
    kind = ATTACKS.get(name)
    small = SMALL.get(name, {length_of(kind): STEPS})
    return kind(kind.configure(**{**small, **own, **settings}))


def short(variant: str, steps: int) -> dict[str, int]:
    """The setting that gives a white-box attack that many steps; others are short as they are."""
    return {"steps": steps} if variant in WHITE_BOX else {}


def ready(variant: str, target: Target, generator: Generator[Any], folder: Path, **settings: Any) -> Attack[Any]:
    """The attack, prepared for the target."""
    return prepared(variant, target, generator, folder, **settings)[0]


def prepared(
    variant: str, target: Target, generator: Generator[Any], folder: Path, **settings: Any
) -> tuple[Attack[Any], Cost]:
    """The attack, prepared for the target, and what that cost."""
    name, copied = VARIANTS[variant][0], not isinstance(target, ModuleTarget)
    if name == "lokt" or (name == "surrogate" and not copied):
        torch.manual_seed(5)
        tiny_base("resnet", CLASSES).save_pretrained(folder / "student")
        settings = {"students": (str(folder / "student"),) * 2, **settings}
    made = tiny_attack(variant, **settings)
    return made, made.prepare_for(target, generator, Pictures(), folder, 0)


class Pictures(Dataset[Tensor]):
    """Twelve random public images."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        return torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(index))
