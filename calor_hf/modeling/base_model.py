"""The base model of a CALoR model: its class, its configuration, its labels."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel

from calor_hf._version import __version__
from calor_hf.core.files import reading
from calor_hf.core.saved_config import check_config
from calor_hf.heads.find_head import check_heads, find_heads, put_back_heads
from calor_hf.modeling.configuration_defended import WrappedConfig

W = TypeVar("W", bound=WrappedConfig)


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


def base_class_of(config: WrappedConfig) -> type[PreTrainedModel]:
    """Class of the base model that ``config`` names.

    Raises:
        ValueError: none of this name is registered for the configuration, and transformers has none.
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
    # Those of transformers, and those that anybody registered with the Auto class: our IR networks, users' own.
    known = AutoModelForImageClassification._model_mapping.get(type(config), ())
    return known if isinstance(known, tuple) else (known,)


def config_for(
    config_class: type[W],
    base: PreTrainedModel,
    head: str | None,
    num_labels: int | None,
    id2label: dict[int, str] | None,
    label2id: dict[str, int] | None,
) -> W:
    """Configuration of a model around ``base``, whose heads are found, or checked where one is named."""
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
    config: PretrainedConfig,
    num_labels: int | None,
    id2label: dict[int, str] | None,
    label2id: dict[str, int] | None,
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


def forget_labels(base_config: PretrainedConfig) -> None:
    """Drop the base's label names: the classes belong to the outer configuration, and names are people's."""
    base_config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    base_config.label2id = {"LABEL_0": 0, "LABEL_1": 1}


def refuse_settings(
    config: WrappedConfig, asked: Mapping[str, Any], defaults: Mapping[str, Any], for_base_only: Mapping[str, Any]
) -> None:
    """Raise ``ValueError`` for settings of a new defense beside a saved defended model.

    Args:
        config: Of the saved model.
        asked: Settings that were given; those equal to the saved ones pass.
        defaults: Values that mean "not given".
        for_base_only: Arguments that apply to base checkpoints only, with what was given; ``None`` is nothing.
    """
    saved = {**config.defense_settings_dict(), "num_labels": config.num_labels, "defense": config.defense_name}
    kind = "CALoR model" if config.model_type == "calor" else f"model of the defense '{config.defense_name}'"
    for name, value in asked.items():
        if value is not None and value not in (saved.get(name), defaults.get(name)):
            raise ValueError(
                f"this is a saved {kind} with {name}={saved.get(name)!r}, got {name}={value!r}; leave {name} out, or "
                "start again from the base checkpoint"
            )
    given = [name for name, value in for_base_only.items() if value is not None]
    if given:
        raise ValueError(f"this is a saved {kind}: {', '.join(for_base_only)} apply to base checkpoints")


def read_config(source: Any, hf_kwargs: dict[str, Any]) -> tuple[PretrainedConfig, dict[str, Any]]:
    """Configuration of a checkpoint, changed by those of ``hf_kwargs`` that belong to it, and the other ones.

    Raises:
        OSError: there is none.
        ValueError: it is damaged, or asks for a model of absurd size.
    """
    for_model = {name: hf_kwargs[name] for name in _FOR_MODEL if name in hf_kwargs}
    for_config = {name: value for name, value in hf_kwargs.items() if name not in for_model}
    check_config(source, **for_config)
    with reading(f"the configuration of {source}"):
        config, unused = AutoConfig.from_pretrained(source, return_unused_kwargs=True, **for_config)
    origin = {name: hf_kwargs[name] for name in _ORIGIN if name in hf_kwargs}
    return config, {**unused, **origin, **for_model}


_FOR_MODEL = ("dtype", "torch_dtype", "attn_implementation", "device_map", "quantization_config")
_ORIGIN = (
    "revision",
    "token",
    "cache_dir",
    "local_files_only",
    "force_download",
    "proxies",
    "subfolder",
    "trust_remote_code",
)


def stock_model(backbone: PreTrainedModel, classifiers: Sequence[nn.Module], config: WrappedConfig) -> PreTrainedModel:
    """A copy of ``backbone`` with copies of its ``classifiers`` in their places, and a word of what defended it."""
    base = copy.deepcopy(backbone)
    put_back_heads(base, config.head_paths, [copy.deepcopy(layer).to(base.dtype) for layer in classifiers])
    base.config.id2label, base.config.label2id = config.id2label, config.label2id
    base.config.architectures = [config.base_class]
    settings = config.defense_settings_dict()
    base.config.defense = {"name": config.defense_name, "settings": settings, "calor_hf": __version__}
    base.requires_grad_(True)
    return base
