"""Any registered defense around any image classification model of transformers."""

import copy
import dataclasses
import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from calor_hf.core.files import reading
from calor_hf.core.label_names import numbered, telling_names
from calor_hf.core.outputs import Forward, Progress
from calor_hf.defenses import DEFENSES, Defense
from calor_hf.heads.chunked_scores import check_chunks, margins_in_chunks
from calor_hf.heads.classifier_head import ClassifierHead, heads_of
from calor_hf.heads.features import run_with_feature_hooks, scores_of
from calor_hf.heads.find_head import check_heads, take_out_heads
from calor_hf.modeling.base_model import (
    Classifiers,
    StartHeads,
    architecture_of,
    base_class_of,
    config_for,
    new_head,
    read_config,
    refuse_settings,
    set_labels,
    start_of_heads,
    stock_model,
)
from calor_hf.modeling.configuration_defended import DefendedConfig

logger = logging.getLogger(__name__)


@dataclass
class DefendedImageClassifierOutput(ModelOutput):
    """Output of a defended model: that of the base model, the features and the terms of the loss.

    Attributes:
        loss: Scalar, the sum of ``loss_terms``; with labels only.
        logits: (batch, num_labels) float32 scores; None if classes were scored in chunks.
        features: (batch, features) entering the head.
        loss_terms: Each term of the loss under its name; with labels only.
        margins: As :func:`~calor_hf.heads.chunked_scores.margins`, if classes were scored in chunks.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    features: Tensor | None = None
    loss_terms: dict[str, Tensor] | None = None
    margins: dict[str, Tensor] | None = None


class DefendedForImageClassification(PreTrainedModel):
    """An image classification model with a defense: the base, a head, and the loss it is trained with.

    Make one with :meth:`from_pretrained` (a base checkpoint or a saved defended model), :meth:`from_base` (a model in
    memory) or :meth:`from_config` (random weights). Models with the defense CALoR are of a subclass that is named
    after it, ``CALoRForImageClassification``, whichever class makes them.

    A model whose scores are the mean of two classifiers (DeiT and LeViT with teacher, SwiftFormer) gets one head for
    each, and its scores stay their mean.

    Attributes:
        defense: The defense, with its settings.
        backbone: The base model; without its classifiers, so that its logits are the features (of several classifiers
            side by side).
        classification_head: Turns features into scores, in float32: the base's own classifier or the defense's head;
            the mean of several, if the base has several.
        feature_width: Number of features.
        class_weights: (num_labels,) weights of the loss, or None; not saved.
        in_training_run: Whether a ``DefenseTrainer`` is at work, which some defenses need.
        class_chunk: Classes scored at a time if labels are given, see :meth:`score_in_chunks`. None means all.
    """

    config_class: type[DefendedConfig] = DefendedConfig
    main_input_name = "pixel_values"
    base_model_prefix = ""
    accepts_loss_kwargs = False  # the loss is the batch's mean: the Trainer divides it when it accumulates gradients
    # A base model refuses itself what it does not support, when the choice reaches it.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = {"classification_head"}  # noqa: RUF012

    def __init__(self, config: DefendedConfig) -> None:
        super().__init__(config)
        self.defense: Defense[Any] = config.make_defense()
        self.backbone = base_class_of(config)._from_config(config.base_config)
        self.feature_width = sum(check_heads(self.backbone, config.head_paths))
        self._hooked_paths = tuple(self.defense.feature_hooks(self.backbone))
        classifiers = take_out_heads(self.backbone, config.head_paths)
        self.classification_head = new_head(self.defense, cast(Classifiers, classifiers), config.num_labels)
        self.main_input_name = self.backbone.main_input_name
        self.supports_gradient_checkpointing = self.backbone.supports_gradient_checkpointing
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)
        self.progress = Progress.at_end(self.defense.stage_names[-1])
        self.in_training_run = False
        self.class_chunk: int | None = None
        self.post_init()

    @property
    def stage(self) -> str:
        """Stage whose loss :meth:`forward` computes; set by the trainer, not saved, the last one by default."""
        return self.progress.stage

    @stage.setter
    def stage(self, name: str) -> None:
        if name not in self.defense.stage_names:
            raise ValueError(f"unknown stage {name!r}; pass one of {', '.join(self.defense.stage_names)}")
        self.progress = Progress.at_end(name)

    def score_in_chunks(self, classes: int | None) -> None:
        """With labels, score that many classes at a time. None means all at once. Not saved.

        The output then has ``margins`` instead of ``logits``, and its memory does not grow with the number of
        classes. Without labels there are logits as usual.

        Raises:
            ValueError: a head or a defense that needs all scores.
        """
        if classes is not None:
            check_chunks(self.classification_head, classes)
            if not self.defense.log_odds_suffice:
                name = self.config.defense
                raise ValueError(f"the loss of the defense '{name}' reads all scores; leave class_chunk out")
        self.class_chunk = classes

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        identities: Tensor | None = None,
        **kwargs: Any,
    ) -> DefendedImageClassifierOutput | tuple[Any, ...]:
        """Scores, features and, with labels, the loss of :attr:`stage`.

        Args:
            pixel_values: (batch, channels, height, width), as the base model's image processor makes them; a base
                with other inputs (ImageGPT: ``input_ids``) takes those by name.
            labels: (batch,) int64 in [0, num_labels).
            identities: (batch,) int64, each of its label's class, for the loss of the defense ``decoys``; only with
                labels.
            kwargs: Handed to the base model; ``return_dict=False`` gives a tuple.

        Raises:
            RuntimeError: training outside ``DefenseTrainer``, with a defense that works only there.
            ValueError: identities without labels, or for a defense that does not read them.
        """
        if identities is not None and (labels is None or not self.defense.identities_per_class):
            raise ValueError(
                "identities are read with labels, by the loss of the defense 'decoys'; this model has the defense "
                f"'{self.config.defense}', and labels are {'missing' if labels is None else 'given'}: leave identities "
                "out"
            )
        return_dict = kwargs.pop("return_dict", None)
        if pixel_values is not None:
            kwargs["pixel_values"] = pixel_values
        for name in {"pixel_values", self.main_input_name} & kwargs.keys():
            if kwargs[name].is_floating_point():  # ImageGPT reads whole numbers
                kwargs[name] = kwargs[name].to(self.backbone.dtype)
        learns = self.training and labels is not None
        if learns and self.defense.needs_trainer and not self.in_training_run:
            raise RuntimeError(
                f"the defense '{self.config.defense}' changes batches or freezes weights, which the model alone "
                "cannot do: train it with DefenseTrainer, or it would be trained undefended"
            )
        hooked: tuple[Tensor, ...] = ()
        if learns and self._hooked_paths:
            outputs, hooked = run_with_feature_hooks(self.backbone, self._hooked_paths, **kwargs, return_dict=True)
        else:
            outputs = self.backbone(**kwargs, return_dict=True)
        features = scores_of(outputs)
        margins: dict[str, Tensor] = {}
        extras: dict[str, Tensor] = {}
        if self.class_chunk is not None and labels is not None:
            margins = margins_in_chunks(cast(Any, self.classification_head), features, labels, self.class_chunk)
            logits = features.new_empty(len(features), 0)
        else:
            logits, extras = self.defense.run_head(self.classification_head, features)

        loss, terms = None, None
        if labels is not None:
            inputs = kwargs.get(self.main_input_name)
            seen = (logits, labels, features, self.class_weights, inputs, hooked, extras, self.training)
            out = Forward(*seen, log_odds=margins.get("log_odds"), identities=identities)
            with torch.autocast(logits.device.type, enabled=False):
                terms = self.defense.loss(out, self.progress)
                loss = torch.stack(list(terms.values())).sum()
        result = DefendedImageClassifierOutput(
            loss=loss,
            logits=None if margins else logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
            features=features,
            loss_terms=terms,
            margins=margins or None,
        )
        as_dict = return_dict if return_dict is not None else self.config.return_dict
        return result if as_dict else result.to_tuple()

    # Construction

    @classmethod
    def from_pretrained(
        cls,
        source: str | PathLike[str],
        *model_args: Any,
        defense: str | None = None,
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        label2id: dict[str, int] | None = None,
        head_init: str = "random",
        calibration: Any = None,
        head: str | None = None,
        **kwargs: Any,
    ) -> "DefendedForImageClassification":
        """Load a saved defended model exactly as it was, or any base checkpoint with a new defense.

        Args:
            source: Hub id or folder of a defended model or of an image classification model.
            model_args: Passed on by Auto classes; not for users.
            defense: Name of the defense, for a base checkpoint. ``CALoRForImageClassification`` has its own.
            num_labels: Number of classes; may differ from the checkpoint's, whose classifier is then replaced by a
                random one. None means the checkpoint's.
            id2label: Names of the classes.
            label2id: Their inverse.
            head_init: ``"random"``, or for a low-rank head ``"svd"``, to start from the checkpoint's classifier.
            calibration: For ``"svd"``: (images, channels, height, width) processed pixel values, or a batch of model
                inputs, or an iterable of such batches.
            head: Path of the classifier's linear layer, if it cannot be found.
            kwargs: Settings of the defense by name, such as ``rank``; ``revision``, ``dtype``,
                ``attn_implementation`` and the other arguments of ``from_pretrained``.

        Raises:
            ValueError: no defense for a base checkpoint, another defense or setting than the saved one, an unknown
                setting, a head that cannot be found or built, or damaged files.
            KeyError: the defense is not registered.
        """
        chosen = defense if defense is not None else cls.config_class.only_defense
        known = [f.name for f in dataclasses.fields(DEFENSES.get(chosen).config_class)] if chosen is not None else []
        settings = {name: kwargs.pop(name) for name in known if name in kwargs}
        labels: dict[str, Any] = {"num_labels": num_labels, "id2label": id2label, "label2id": label2id}
        new: dict[str, Any] = {"head_init": head_init, "calibration": calibration, "head": head}
        config = kwargs.pop("config", None)
        if not isinstance(config, PretrainedConfig):
            config, kwargs = read_config(config or source, kwargs)
        for name in kwargs:  # those that no configuration took
            if near := difflib.get_close_matches(name, known, n=1, cutoff=0.75):
                raise ValueError(f"unknown argument {name}; did you mean the setting {near[0]}?")
        if isinstance(config, DefendedConfig):
            kind = cls if type(config) is cls.config_class else model_class_of(config.defense)
            if not isinstance(config, cls.config_class):
                name = kind.__name__
                raise ValueError(f"{source} is a saved model of the defense '{config.defense}'; load it with {name}")
            names = id2label if id2label is not None else label2id
            classes = len(names) if num_labels is None and names is not None else num_labels
            for_base_only = {**new, "head_init": None if head_init == "random" else head_init}
            refuse_settings(config, {"defense": defense, **settings, "num_labels": classes}, for_base_only)
            set_labels(config, None, id2label, label2id)
            with reading(f"the model in {source}"):
                load: Any = super(DefendedForImageClassification, kind).from_pretrained
                return cast(DefendedForImageClassification, load(source, *model_args, config=config, **kwargs))
        if chosen is None:
            raise ValueError(
                f"{source} is an undefended model; pass defense= one of {', '.join(DEFENSES.names())}, or load it with "
                "AutoModelForImageClassification"
            )
        with reading(f"the model in {source}"):
            base: Any = architecture_of(config).from_pretrained(source, config=config, **kwargs)
        # With output_loading_info=True transformers adds the missing and unexpected weights of the file.
        base, *info = base if isinstance(base, tuple) else (base,)
        model: Any = cls.from_base(base, defense, **labels, **new, **settings)
        return (model, *info) if info else model  # type: ignore[return-value]

    @classmethod
    def from_base(
        cls,
        base: PreTrainedModel,
        defense: str | None = None,
        *,
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        label2id: dict[str, int] | None = None,
        head_init: str = "random",
        calibration: Any = None,
        head: str | None = None,
        **settings: Any,
    ) -> "DefendedForImageClassification":
        """A defended model from a model in memory, whose weights it shares; arguments as :meth:`from_pretrained`.

        ``base`` loses its classifier, which the identity replaces, and its label names.

        Raises:
            KeyError: the defense is not registered.
        """
        labels: dict[str, Any] = {"num_labels": num_labels, "id2label": id2label, "label2id": label2id}
        kind, config, start = cls._described(base, defense, head_init, calibration, head, labels, settings)
        return cast(DefendedForImageClassification, kind._around(base, config, start))

    @classmethod
    def check_base(cls, base: PreTrainedModel, defense: str, *, head_init: str = "random", **settings: Any) -> None:
        """Raise what :meth:`from_base` would, for settings that do not fit ``base`` and its classes."""
        cls._described(base, defense, head_init, None, settings.pop("head", None), {}, settings)

    @classmethod
    def _described(
        cls, base: PreTrainedModel, defense: str | None, head_init: str, calibration: Any, head: str | None,
        labels: dict[str, Any], settings: dict[str, Any],
    ) -> tuple[Any, DefendedConfig, StartHeads | None]:  # fmt: skip
        """Class and configuration of the model from ``base``, which stays as it is, and the start of its heads."""
        only = cls.config_class.only_defense
        defense = defense if defense is not None else only
        if defense is None:
            raise ValueError(f"pass defense= one of {', '.join(DEFENSES.names())}")
        if only is not None and defense != only:
            raise ValueError(
                f"{cls.__name__} has the defense '{only}', got '{defense}'; use DefendedForImageClassification"
            )
        kind = cls if only is not None else model_class_of(defense, default=cls)
        method = DEFENSES.get(defense)
        chosen = method.config_class.from_dict(settings)
        config = config_for(kind.config_class, base, head, **labels)
        chosen = method.complete(chosen, min(check_heads(base, config.head_paths)), config.num_labels)
        config.defense, config.defense_settings = defense, chosen.to_dict()
        start = start_of_heads(head_init, config, base, calibration)
        method(chosen).feature_hooks(base)  # refuses the base before anything changes
        return kind, config, start

    @classmethod
    def from_config(cls, config: PretrainedConfig, **kwargs: Any) -> "DefendedForImageClassification":
        """Random weights, from a saved configuration, or a base configuration and :meth:`from_base`'s arguments."""
        if isinstance(config, DefendedConfig):
            kind = cls if type(config) is cls.config_class else model_class_of(config.defense)
            return cast(DefendedForImageClassification, kind._from_config(config, **kwargs))
        return cls.from_base(architecture_of(config)._from_config(copy.deepcopy(config)), **kwargs)

    @classmethod
    def _around(cls, base: PreTrainedModel, config: DefendedConfig, start: StartHeads | None = None) -> Any:
        """Model that ``config`` describes, with the weights of ``base``; ``start`` fills its heads."""
        with torch.device("meta"):
            model = cls(config)
        classifiers = [cast(nn.Linear, base.get_submodule(path)) for path in config.head_paths]
        head = new_head(model.defense, classifiers, config.num_labels).to(classifiers[0].weight.device).float()
        if start is not None:
            start(heads_of(head), classifiers)
        take_out_heads(base, config.head_paths)
        # The classes belong to the outer configuration, and may name people.
        base.config.id2label, base.config.label2id = {0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1}
        model.backbone, model.classification_head = base, head
        config.base_config = base.config
        config._attn_implementation = base.config._attn_implementation
        config.dtype = base.dtype
        model.train(base.training)
        return model

    def to_base(self) -> PreTrainedModel:
        """Copy this model into the stock model of transformers that it was made from, which needs no calor_hf.

        Its configuration names, under ``defense``, the defense that it was trained with.

        Raises:
            ValueError: the defense replaced the classifier, so that no stock model has these scores.
        """
        if self.defense.own_head:
            name, base = self.config.defense, self.config.base_class
            raise ValueError(f"the defense '{name}' replaces the classifier, so this is no {base}; save it as it is")
        classifiers = [head.classifier for head in cast(list[ClassifierHead], heads_of(self.classification_head))]
        return stock_model(self.backbone, classifiers, self.config)

    def push_to_hub(self, *args: Any, anonymize_labels: bool = False, **kwargs: Any) -> Any:
        """As ``PreTrainedModel.push_to_hub``; pushes the stock model, if there is one (:meth:`to_base`).

        With ``anonymize_labels``, numbers instead of class names. Paths of this machine stay here.
        """
        with _fit_to_publish(self.config, anonymize_labels):
            if self.defense.own_head:
                return super().push_to_hub(*args, **kwargs)
            return self.to_base().push_to_hub(*args, **kwargs)


def model_class_of(
    defense: str, default: type[DefendedForImageClassification] = DefendedForImageClassification
) -> type[DefendedForImageClassification]:
    """Class of the models with a defense: the one that is named after it, or ``default``."""
    kinds = DefendedForImageClassification.__subclasses__()
    return next((kind for kind in kinds if kind.config_class.only_defense == defense), default)


def defend(base: PreTrainedModel, defense: str, **settings: Any) -> DefendedForImageClassification:
    """``base`` with the defense of that name, as :meth:`DefendedForImageClassification.from_base` with its settings."""
    return DefendedForImageClassification.from_base(base, defense, **settings)


@contextmanager
def _fit_to_publish(config: DefendedConfig, anonymize_labels: bool) -> Iterator[None]:
    """Context manager: ``config`` has no path of this machine and, with ``anonymize_labels``, no class names."""
    base: Any = config.base_config
    kept = config.id2label, config.label2id, base.name_or_path
    telling = telling_names(config.id2label.values())
    if telling and not anonymize_labels:
        logger.warning(
            "%d class names are published with the model (%s, ...); if they are people's, pass anonymize_labels=True",
            *(len(telling), telling[0]),
        )
    try:
        if anonymize_labels:
            config.id2label = numbered(config.id2label)
            config.label2id = {name: index for index, name in config.id2label.items()}
        if Path(str(base.name_or_path)).exists():
            base.name_or_path = ""
        yield
    finally:
        config.id2label, config.label2id, base.name_or_path = kept
