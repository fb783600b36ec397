"""The parts that a defended model is made from: the base model's class, configuration and labels, and new heads."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel

from calor_hf._version import __version__
from calor_hf.core.files import reading
from calor_hf.core.saved_config import check_config
from calor_hf.defenses import Defense
from calor_hf.defenses.low_rank import LowRankDefense
from calor_hf.defenses.none import NoDefense, NoDefenseConfig
from calor_hf.heads.classifier_head import ClassifierHead, MeanOfHeads, same_kind
from calor_hf.heads.features import head_inputs
from calor_hf.heads.find_head import check_heads, find_heads, put_back_heads
from calor_hf.heads.low_rank_head import LowRankHead
from calor_hf.heads.svd_init import check_straight, svd_init
from calor_hf.modeling.configuration_defended import DefendedConfig

W = TypeVar("W", bound=DefendedConfig)


def defense_of(model: nn.Module) -> Defense[Any]:
    """Defense of a model, or of the one inside a ``PeftModel``; for an ordinary model ``none``."""
    found = getattr(model, "defense", None)
    return found if isinstance(found, Defense) else NoDefense(NoDefenseConfig())


def architecture_of(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Class that a checkpoint was saved from, or the first image classifier of its type.

    Raises:
        ValueError: the type has no image classifier.
    """
    candidates = _registered(config)
    if not candidates:
        raise ValueError(
            f"{type(config).__name__} has no image classification model in transformers {transformers.__version__}; "
            "pass a checkpoint of one, e.g. google/vit-base-patch16-224"
        )
    named = (config.architectures or [None])[0]
    return next((c for c in candidates if c.__name__ == named), candidates[0])


def base_class_of(config: DefendedConfig) -> type[PreTrainedModel]:
    """Class of the base model that ``config`` names.

    Raises:
        ValueError: neither the Auto classes nor transformers have a model class of this name.
    """
    own = {kind.__name__: kind for kind in _registered(config.base_config)}
    found = own.get(config.base_class or "", getattr(transformers, config.base_class or "", None))
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ValueError(
            f"base_class {config.base_class!r} is no model class of transformers {transformers.__version__}; "
            "install the version that this model was saved with"
        )
    return found


def _registered(config: PretrainedConfig | None) -> tuple[type[PreTrainedModel], ...]:
    # Those of transformers, and those that were registered with the Auto class.
    known = AutoModelForImageClassification._model_mapping.get(type(config), ())
    return known if isinstance(known, tuple) else (known,)


def config_for(
    config_class: type[W],
    base: PreTrainedModel,
    head: str | None,
    num_labels: int | None = None,
    id2label: dict[int, str] | None = None,
    label2id: dict[str, int] | None = None,
) -> W:
    """Configuration of a model around ``base``, whose heads are found, or checked if ``head`` names one."""
    paths = [head] if head is not None else find_heads(type(base), base.config)
    check_heads(base, paths)
    config = config_class(base_config=copy.deepcopy(base.config), base_class=type(base).__name__, head_paths=paths)
    base_class_of(config)
    if base.config.id2label:
        config.id2label, config.label2id = base.config.id2label, base.config.label2id
    else:  # PVT has the number alone
        config.num_labels = base.config.num_labels
    set_labels(config, num_labels, id2label, label2id)
    return config


def set_labels(
    config: PretrainedConfig, num_labels: int | None, id2label: dict[int, str] | None, label2id: dict[str, int] | None
) -> None:
    """Write the classes into ``config``; names go before numbers.

    Raises:
        ValueError: ``num_labels`` and the names disagree.
    """
    named = len(id2label) if id2label is not None else len(label2id) if label2id is not None else num_labels
    if num_labels is not None and named != num_labels:
        raise ValueError(f"num_labels={num_labels}, but the label names given are {named}; pass one name per class")
    if id2label is None and label2id is not None:
        id2label = {index: name for name, index in label2id.items()}
    if id2label is not None:
        config.id2label = {int(index): name for index, name in id2label.items()}
        config.label2id = {name: index for index, name in config.id2label.items()}
    elif num_labels is not None and num_labels != config.num_labels:
        config.num_labels = num_labels


def refuse_settings(config: DefendedConfig, asked: Mapping[str, Any], for_base_only: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for settings of a new defense that a saved defended model does not have.

    Args:
        config: Configuration of the saved model.
        asked: Settings that were given; None and those equal to the saved ones pass.
        for_base_only: Arguments that apply to base checkpoints only, with their values; None means not given.
    """
    saved = {**config.make_defense().config.to_dict(), "num_labels": config.num_labels, "defense": config.defense}
    kind = f"model of the defense '{config.defense}'"
    for name, value in asked.items():
        if value is not None and value != saved.get(name):
            raise ValueError(
                f"this is a saved {kind} with {name}={saved.get(name)!r}, got {name}={value!r}; leave {name} out, or "
                "start again from the base checkpoint"
            )
    if any(value is not None for value in for_base_only.values()):
        raise ValueError(f"this is a saved {kind}: {', '.join(for_base_only)} apply to base checkpoints")


def read_config(source: Any, hf_kwargs: dict[str, Any]) -> tuple[PretrainedConfig, dict[str, Any]]:
    """Configuration of a checkpoint, changed by those of ``hf_kwargs`` that belong to it, and the other ones.

    Raises:
        OSError: the checkpoint has no configuration.
        ValueError: the configuration is damaged, or describes a model of impossible size.
    """
    for_model = {name: hf_kwargs[name] for name in _FOR_MODEL if name in hf_kwargs}
    for_config = {name: value for name, value in hf_kwargs.items() if name not in for_model}
    check_config(source, **for_config)
    with reading(f"the configuration of {source}"):
        config, unused = AutoConfig.from_pretrained(source, return_unused_kwargs=True, **for_config)
    origin = {name: hf_kwargs[name] for name in _ORIGIN if name in hf_kwargs}
    return config, {**unused, **origin, **for_model}


_FOR_MODEL = ("dtype", "torch_dtype", "attn_implementation", "device_map", "quantization_config")
_ORIGIN = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies", "subfolder",
           "trust_remote_code")  # fmt: skip


def stock_model(backbone: PreTrainedModel, classifiers: Sequence[nn.Module], config: DefendedConfig) -> PreTrainedModel:
    """Copy ``backbone`` with copies of its ``classifiers`` put back; its configuration names the defense."""
    base = copy.deepcopy(backbone)
    put_back_heads(base, config.head_paths, [copy.deepcopy(layer).to(base.dtype) for layer in classifiers])
    base.config.id2label, base.config.label2id = config.id2label, config.label2id
    base.config.architectures = [config.base_class]
    settings = dict(config.defense_settings)
    base.config.defense = {"name": config.defense, "settings": settings, "calor_hf": __version__}
    base.requires_grad_(True)
    return base


Classifiers = Sequence[nn.Linear | nn.Conv2d]
StartHeads = Callable[[list[nn.Module], Classifiers], None]
"""Function that fills new heads, given the classifiers that they replace."""


def new_head(defense: Defense[Any], classifiers: Classifiers, num_labels: int) -> nn.Module:
    """Head of a defended model instead of ``classifiers``: their own, or the defense's; for several, their mean."""
    kept = [same_kind(classifier, num_labels) for classifier in classifiers]
    widths = [layer.weight.shape[1] for layer in kept]
    heads: list[nn.Module] = [ClassifierHead(layer) for layer in kept]
    if defense.own_head:
        heads = [defense.build_head(width, num_labels) for width in widths]
    return MeanOfHeads(heads, widths) if len(heads) > 1 else heads[0]


def start_of_heads(
    head_init: str, config: DefendedConfig, base: PreTrainedModel, calibration: Any
) -> StartHeads | None:
    """Function that fills new low-rank heads of ``base`` by the SVD of each classifier, or None for a random start.

    Args:
        head_init: ``"random"`` or ``"svd"``.
        config: Configuration of the defended model.
        base: With its trained classifiers.
        calibration: Processed training images, a batch of model inputs, an iterable of such batches, or None.

    Raises:
        ValueError: an unknown ``head_init``, or ``"svd"`` for a defense without a low-rank head.
    """
    if head_init not in ("random", "svd"):
        raise ValueError(f"unknown head_init {head_init!r}; pass 'random' or 'svd'")
    if head_init == "random":
        return None
    defense = config.make_defense()
    if defense.identities_per_class:
        raise ValueError(
            f"head_init='svd' copies a classifier of the private people, which tells them from their decoys; "
            f"{config.defense} starts from random weights: leave it out"
        )
    if not isinstance(defense, LowRankDefense) or not defense.own_head:
        with_these = " with these settings" if isinstance(defense, LowRankDefense) else ""
        raise ValueError(
            f"head_init='svd' starts a low-rank head, and {config.defense} has none{with_these}; leave it out"
        )
    check_straight(defense.config.activation, normed=defense.config.input_norm is not None)
    widths = check_heads(base, config.head_paths)

    def start(heads: list[nn.Module], classifiers: Classifiers) -> None:
        batches = [calibration] if isinstance(calibration, Tensor | Mapping) else calibration
        features = None if calibration is None else head_inputs(base, config.head_paths, batches)
        parts = [None] * len(widths) if features is None else features.split(widths, dim=1)
        for new, classifier, part in zip(heads, classifiers, parts, strict=True):
            svd_init(cast(LowRankHead, new), classifier, part)

    return start
