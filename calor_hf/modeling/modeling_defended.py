"""Any registered defense around any image classification model of transformers."""

import copy
import dataclasses
from collections.abc import Callable
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from calor_hf.core.files import reading
from calor_hf.core.outputs import Forward, Progress
from calor_hf.defenses import DEFENSES, Defense
from calor_hf.defenses.low_rank import LowRankDefense
from calor_hf.heads.chunked_scores import check_chunks, margins_in_chunks
from calor_hf.heads.classifier_head import ClassifierHead, heads_of
from calor_hf.heads.features import run_with_feature_hooks, scores_of
from calor_hf.heads.find_head import check_heads, take_out_heads
from calor_hf.modeling.base_model import (
    architecture_of,
    base_class_of,
    config_for,
    forget_labels,
    read_config,
    refuse_settings,
    set_labels,
    stock_model,
)
from calor_hf.modeling.configuration_defended import DefendedConfig, WrappedConfig
from calor_hf.modeling.head_start import Classifiers, StartHeads, check_head_init, new_head, start_of_heads
from calor_hf.modeling.output import DefendedImageClassifierOutput
from calor_hf.modeling.released import fit_to_publish


class DefendedForImageClassification(PreTrainedModel):
    """An image classification model with a defense: the base, a head, and the loss it is trained with.

    Make one with :meth:`from_pretrained` (a base checkpoint or a saved defended model), :meth:`from_base` (a model in
    memory) or :meth:`from_config` (random weights). CALoR has a class of its own, ``CALoRForImageClassification``.

    A model with two classifiers whose mean are its scores (DeiT and LeViT with teacher, SwiftFormer) has a head in the
    place of each, and its scores stay their mean.

    Attributes:
        defense: The defense, with its settings.
        backbone: The base model; without its classifiers, so that its logits are the features (of several classifiers
            side by side).
        classification_head: What turns features into scores, in float32: the base's own classifier or the defense's
            head; the mean of several, where the base has several.
        feature_width: Number of features.
        class_weights: (num_labels,) weights of the loss, or None; not saved.
        in_training_run: Whether a ``DefenseTrainer`` is at work, which some defenses need.
        class_chunk: Classes scored at a time where labels are given, see :meth:`score_in_chunks`; None: all.
    """

    config_class: type[WrappedConfig] = DefendedConfig
    main_input_name = "pixel_values"
    base_model_prefix = ""
    accepts_loss_kwargs = False  # the loss is the batch's mean: the Trainer divides it when it accumulates gradients
    # What a base model does not support it refuses itself, when the choice reaches it.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = {"classification_head"}  # noqa: RUF012

    def __init__(self, config: WrappedConfig) -> None:
        super().__init__(config)
        self.defense: Defense[Any] = config.make_defense()
        self.backbone = base_class_of(config)._from_config(config.base_config)
        self.feature_width = sum(check_heads(self.backbone, config.head_paths))
        self._hooked = tuple(self.defense.feature_hooks(self.backbone))
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
        """With labels, score that many classes at a time; None: all at once. Not saved.

        The output then has ``margins`` instead of ``logits``, and its memory does not grow with the number of
        classes. Without labels there are logits as ever.

        Raises:
            ValueError: a head or a defense that cannot do without the scores.
        """
        if classes is not None:
            check_chunks(self.classification_head, classes)
            if not self.defense.log_odds_suffice:
                raise ValueError(
                    f"the loss of the defense '{self.config.defense_name}' reads all scores; leave class_chunk out"
                )
        self.class_chunk = classes

    def forward(
        self, pixel_values: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> DefendedImageClassifierOutput | tuple[Any, ...]:
        """Scores, features and, with labels, the loss of :attr:`stage`.

        Args:
            pixel_values: (batch, channels, height, width), as the base model's image processor makes them; a base
                with other inputs (ImageGPT: ``input_ids``) takes those by name.
            labels: (batch,) int64 in [0, num_labels).
            kwargs: Handed to the base model; ``return_dict=False`` gives a tuple.

        Raises:
            RuntimeError: training outside ``DefenseTrainer``, with a defense that works only there.
        """
        return_dict = kwargs.pop("return_dict", None)
        if pixel_values is not None:
            kwargs["pixel_values"] = pixel_values
        for name in {"pixel_values", self.main_input_name} & kwargs.keys():
            if kwargs[name].is_floating_point():  # ImageGPT reads whole numbers
                kwargs[name] = kwargs[name].to(self.backbone.dtype)
        learns = self.training and labels is not None
        if learns and self.defense.needs_trainer and not self.in_training_run:
            raise RuntimeError(
                f"the defense '{self.config.defense_name}' changes batches or freezes weights, which the model alone "
                "cannot do: train it with DefenseTrainer, or it would be trained undefended"
            )
        feature_hooks: tuple[Tensor, ...] = ()
        if learns and self._hooked:
            outputs, feature_hooks = run_with_feature_hooks(self.backbone, self._hooked, **kwargs, return_dict=True)
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
            seen = (logits, labels, features, self.class_weights, inputs, feature_hooks, extras, self.training)
            out = Forward(*seen, log_odds=margins.get("log_odds"))
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

    # Making one

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
        """A saved defended model, rebuilt exactly; or any base checkpoint with a defense.

        Args:
            source: Hub id or folder of a defended model or of an image classification model.
            model_args: Handed on by Auto classes; not for users.
            defense: Name of the defense, for a base checkpoint.
            num_labels: Number of classes; may differ from the checkpoint's, whose classifier then gives way to a
                random one. None: the checkpoint's.
            id2label: Names of the classes.
            label2id: Their inverse.
            head_init: ``"random"``, or for a low-rank head ``"svd"``, to start from the checkpoint's classifier.
            calibration: For ``"svd"``: as for
                :meth:`~calor_hf.modeling.modeling_calor.CALoRForImageClassification.from_pretrained`.
            head: Path of the classifier's linear layer, where it cannot be found.
            kwargs: Settings of the defense by name; ``revision``, ``dtype``, ``attn_implementation`` and what else
                ``from_pretrained`` takes.

        Raises:
            ValueError: no defense for a base checkpoint, another defense or setting than the saved one, a head that
                cannot be found, or damaged files.
            KeyError: no one registered the defense.
        """
        known = {f.name for f in dataclasses.fields(DEFENSES.get(defense).config_class)} if defense else set()
        settings = {name: kwargs.pop(name) for name in list(kwargs) if name in known}

        def refuse(config: WrappedConfig, classes: int | None) -> None:
            init = None if head_init == "random" else head_init
            for_base_only = {"head_init": init, "calibration": calibration, "head": head}
            refuse_settings(config, {"defense": defense, **settings, "num_labels": classes}, {}, for_base_only)

        def start(base: PreTrainedModel) -> DefendedForImageClassification:
            if defense is None:
                raise ValueError(
                    f"{source} is an undefended model; pass defense= one of {', '.join(DEFENSES.names())}, or load it "
                    "with AutoModelForImageClassification"
                )
            labels: dict[str, Any] = {"num_labels": num_labels, "id2label": id2label, "label2id": label2id}
            new: dict[str, Any] = {"head_init": head_init, "calibration": calibration, "head": head}
            return cls.from_base(base, defense, **new, **labels, **settings)

        found = cls._load(source, model_args, kwargs, (num_labels, id2label, label2id), refuse, start)
        return cast(DefendedForImageClassification, found)

    @classmethod
    def from_base(
        cls,
        base: PreTrainedModel,
        defense: str,
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

        ``base`` loses its classifier and its label names: the identity stands in its place afterwards.
        """
        method = DEFENSES.get(defense)
        if defense == "calor":
            raise ValueError("CALoR has a class of its own: CALoRForImageClassification.from_base(model, rank=...)")
        check_head_init(head_init)
        if head_init == "svd" and not issubclass(method, LowRankDefense):
            raise ValueError(f"head_init='svd' starts a low-rank head, and {defense} has none; leave it out")
        chosen = method.config_class.from_dict(settings)
        config = config_for(cls.config_class, base, head, num_labels, id2label, label2id)
        chosen = method.complete(chosen, min(check_heads(base, config.head_paths)), config.num_labels)
        method(chosen).feature_hooks(base)  # complains before anything changes
        config.defense = defense
        config.set_defense(chosen.to_dict())
        start = start_of_heads(head_init, base, config.head_paths, calibration)
        return cast(DefendedForImageClassification, cls._around(base, config, start))

    @classmethod
    def from_config(cls, config: PretrainedConfig, **kwargs: Any) -> "DefendedForImageClassification":
        """Random weights, from a saved configuration, or a base configuration and :meth:`from_base`'s arguments."""
        if isinstance(config, WrappedConfig):
            return cast(DefendedForImageClassification, cls._from_config(config, **kwargs))
        return cls.from_base(architecture_of(config)._from_config(copy.deepcopy(config)), **kwargs)

    @classmethod
    def _load(
        cls,
        source: Any,
        model_args: tuple[Any, ...],
        hf_kwargs: dict[str, Any],
        labels: tuple[int | None, dict[int, str] | None, dict[str, int] | None],
        refuse: Callable[[Any, int | None], None],
        start: Callable[[PreTrainedModel], Any],
    ) -> Any:
        num_labels, id2label, label2id = labels
        config = hf_kwargs.pop("config", None)
        if not isinstance(config, PretrainedConfig):
            config, hf_kwargs = read_config(config or source, hf_kwargs)
        if isinstance(config, cls.config_class):
            names = id2label if id2label is not None else label2id
            refuse(config, len(names) if num_labels is None and names is not None else num_labels)
            set_labels(config, None, id2label, label2id)
            with reading(f"the model in {source}"):
                return super().from_pretrained(source, *model_args, config=config, **hf_kwargs)
        if isinstance(config, WrappedConfig):
            other = "CALoRForImageClassification" if config.model_type == "calor" else "DefendedForImageClassification"
            raise ValueError(f"{source} is a saved model of the defense '{config.defense_name}'; load it with {other}")
        with reading(f"the model in {source}"):
            loaded = architecture_of(config).from_pretrained(source, config=config, **hf_kwargs)
        model = start(loaded[0] if isinstance(loaded, tuple) else loaded)
        # With output_loading_info=True transformers adds what was missing and unexpected in the file.
        return (model, *loaded[1:]) if isinstance(loaded, tuple) else model

    @classmethod
    def _around(
        cls,
        base: PreTrainedModel,
        config: WrappedConfig,
        start: StartHeads | None = None,
    ) -> Any:
        """Model that ``config`` describes, with the weights of ``base``; ``start`` fills its heads."""
        with torch.device("meta"):
            model = cls(config)
        classifiers = [cast(nn.Linear, base.get_submodule(path)) for path in config.head_paths]
        head = new_head(model.defense, classifiers, config.num_labels).to(classifiers[0].weight.device).float()
        if start is not None:
            start(heads_of(head), classifiers)
        take_out_heads(base, config.head_paths)
        forget_labels(base.config)
        model.backbone, model.classification_head = base, head
        config.base_config = base.config
        config._attn_implementation = base.config._attn_implementation
        config.dtype = base.dtype
        model.train(base.training)
        return model

    def to_base(self) -> PreTrainedModel:
        """A copy of this model as the stock model of transformers that it was made from: no one needs calor_hf for it.

        Its configuration says, under ``defense``, what it was trained with.

        Raises:
            ValueError: the defense replaced the classifier, so that there is no stock model with these scores.
        """
        if self.defense.own_head:
            raise ValueError(
                f"the defense '{self.config.defense_name}' replaces the classifier, so this is no "
                f"{self.config.base_class}; save it as it is"
            )
        classifiers = [head.classifier for head in cast(list[ClassifierHead], heads_of(self.classification_head))]
        return stock_model(self.backbone, classifiers, self.config)

    def push_to_hub(self, *args: Any, anonymize_labels: bool = False, **kwargs: Any) -> Any:
        """As ``PreTrainedModel.push_to_hub``; the stock model, where there is one (:meth:`to_base`).

        With ``anonymize_labels``, numbers instead of class names. Paths of this machine stay here.
        """
        with fit_to_publish(self.config, anonymize_labels):
            if self.defense.own_head:
                return super().push_to_hub(*args, **kwargs)
            return self.to_base().push_to_hub(*args, **kwargs)
