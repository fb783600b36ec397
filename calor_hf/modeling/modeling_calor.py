"""CALoR around any image classification model of transformers."""

import copy
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from calor_hf.core.outputs import Forward, Progress
from calor_hf.defenses.calor import CALoR, check_strength
from calor_hf.layers.features import head_inputs, scores_of
from calor_hf.layers.find_head import check_heads, take_out_heads
from calor_hf.layers.low_rank_head import LowRankHead, MeanOfHeads, check_head, default_rank
from calor_hf.layers.svd_init import svd_init
from calor_hf.modeling.base_model import (
    architecture_of,
    base_class_of,
    config_for,
    forget_labels,
    read_config,
    refuse_new_head,
    set_labels,
)
from calor_hf.modeling.configuration_calor import CALoRConfig

logger = logging.getLogger(__name__)


@dataclass
class CALoRImageClassifierOutput(ModelOutput):
    """What the base model returns, and what the head read.

    Attributes:
        loss: Scalar, the sum of ``loss_terms``; with labels only.
        logits: (batch, num_labels) float32 scores.
        hidden_states: As the base model returns them.
        attentions: As the base model returns them.
        features: (batch, features) entering the head.
        loss_terms: Each term of the loss under its name; with labels only.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    features: Tensor | None = None
    loss_terms: dict[str, Tensor] | None = None


class CALoRForImageClassification(PreTrainedModel):
    """An image classification model whose classifier is a :class:`LowRankHead`.

    A model with two classifiers whose mean are its scores (DeiT and LeViT with teacher, SwiftFormer) gets a low-rank
    head of the same rank in the place of each, and its scores stay their mean.

    Make one with :meth:`from_pretrained` (a base checkpoint or a saved CALoR model), :meth:`from_base` (a model in
    memory) or :meth:`from_config` (random weights).

    Attributes:
        backbone: The base model; without its classifiers, so that its logits are the features (of several classifiers
            side by side).
        low_rank_head: The head that turns features into scores, in float32: a :class:`LowRankHead`, or the mean of
            several.
        class_weights: (num_labels,) weights of the loss, or None; not saved.
    """

    config_class = CALoRConfig
    main_input_name = "pixel_values"
    base_model_prefix = ""
    accepts_loss_kwargs = False  # the loss is the batch's mean: the Trainer divides it when it accumulates gradients
    # What a base model does not support it refuses itself, when the choice reaches it.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = {"low_rank_head"}  # noqa: RUF012

    def __init__(self, config: CALoRConfig) -> None:
        super().__init__(config)
        self.defense = CALoR(config.defense_config())
        self.backbone = base_class_of(config)._from_config(config.base_config)
        widths = check_heads(self.backbone, config.head_paths)
        take_out_heads(self.backbone, config.head_paths)
        self.low_rank_head = self._build_head(widths)
        self.main_input_name = self.backbone.main_input_name
        self.supports_gradient_checkpointing = self.backbone.supports_gradient_checkpointing
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)
        self.progress = Progress.at_end(self.defense.stage_names[-1])
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

    def set_loss(self, a: float, b: float) -> None:
        """Strength and sharpness of confidence adaptation; saved with the configuration."""
        check_strength(a, b)
        self.config.ca_a, self.config.ca_b = a, b
        self.defense = CALoR(self.config.defense_config())

    def _build_head(self, widths: Sequence[int]) -> LowRankHead | MeanOfHeads:
        heads = [self.defense.build_head(width, self.config.num_labels) for width in widths]
        return MeanOfHeads(heads) if len(heads) > 1 else heads[0]

    def forward(
        self, pixel_values: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> CALoRImageClassifierOutput | tuple[Any, ...]:
        """Scores, features and, with labels, the loss of :attr:`stage`.

        Args:
            pixel_values: (batch, channels, height, width), as the base model's image processor makes them; a base
                with other inputs (ImageGPT: ``input_ids``) takes those by name.
            labels: (batch,) int64 in [0, num_labels).
            kwargs: Handed to the base model; ``return_dict=False`` gives a tuple.
        """
        return_dict = kwargs.pop("return_dict", None)
        if pixel_values is not None:
            kwargs["pixel_values"] = pixel_values
        for name in {"pixel_values", self.main_input_name} & kwargs.keys():
            if kwargs[name].is_floating_point():  # ImageGPT reads whole numbers
                kwargs[name] = kwargs[name].to(self.backbone.dtype)
        outputs = self.backbone(**kwargs, return_dict=True)
        features = scores_of(outputs)
        logits = self.low_rank_head(features)

        loss, terms = None, None
        if labels is not None:
            with torch.autocast(logits.device.type, enabled=False):
                terms = self.defense.loss(Forward(logits, labels, features, self.class_weights), self.progress)
                loss = torch.stack(list(terms.values())).sum()
        result = CALoRImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
            features=features,
            loss_terms=terms,
        )
        as_dict = return_dict if return_dict is not None else self.config.return_dict
        return result if as_dict else result.to_tuple()

    @classmethod
    def from_pretrained(
        cls,
        source: str | PathLike[str],
        *model_args: Any,
        rank: int | None = None,
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        label2id: dict[str, int] | None = None,
        activation: str = "tanh",
        input_norm: str | None = None,
        bias: bool = True,
        head_init: str = "random",
        calibration: Any = None,
        head: str | None = None,
        **hf_kwargs: Any,
    ) -> "CALoRForImageClassification":
        """A saved CALoR model, rebuilt exactly; or any base checkpoint with a fresh low-rank head.

        Args:
            source: Hub id or folder of a CALoR model or of an image classification model.
            model_args: Handed on by Auto classes; not for users.
            rank: Width of the code; None: :func:`~calor_hf.layers.low_rank_head.default_rank`, logged.
            num_labels: Number of classes; may differ from the checkpoint's. None: the checkpoint's.
            id2label: Names of the classes.
            label2id: Their inverse.
            activation: Between the head's layers.
            input_norm: ``"batchnorm"`` in front of the head, or None.
            bias: Whether the head's layers have biases.
            head_init: ``"random"``, or ``"svd"`` to start from the checkpoint's trained classifier.
            calibration: For ``"svd"``: (images, channels, height, width) processed pixel values, or a batch of model
                inputs, or an iterable of such batches.
            head: Path of the classifier's linear layer, where it cannot be found.
            hf_kwargs: ``revision``, ``dtype``, ``attn_implementation`` and what else ``from_pretrained`` takes.

        Raises:
            ValueError: settings of a new head beside a saved CALoR model, or a head that cannot be found or built.
        """
        config = hf_kwargs.pop("config", None)
        if not isinstance(config, PretrainedConfig):
            config, hf_kwargs = read_config(config or source, hf_kwargs)
        if isinstance(config, CALoRConfig):
            asked = {"rank": rank, "activation": activation, "input_norm": input_norm, "bias": bias}
            names = id2label if id2label is not None else label2id
            asked["num_labels"] = len(names) if num_labels is None and names is not None else num_labels
            asked = {name: value for name, value in asked.items() if value is not None}
            refuse_new_head(config, asked, head_init, head, calibration)
            set_labels(config, None, id2label, label2id)
            return cast(
                CALoRForImageClassification, super().from_pretrained(source, *model_args, config=config, **hf_kwargs)
            )
        loaded = architecture_of(config).from_pretrained(source, config=config, **hf_kwargs)
        base = loaded[0] if isinstance(loaded, tuple) else loaded
        model = cls.from_base(
            base,
            rank=rank,
            num_labels=num_labels,
            id2label=id2label,
            label2id=label2id,
            activation=activation,
            input_norm=input_norm,
            bias=bias,
            head_init=head_init,
            calibration=calibration,
            head=head,
        )
        # With output_loading_info=True transformers adds what was missing and unexpected in the file.
        return cast(CALoRForImageClassification, (model, *loaded[1:])) if isinstance(loaded, tuple) else model

    @classmethod
    def from_base(
        cls,
        base: PreTrainedModel,
        *,
        rank: int | None = None,
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        label2id: dict[str, int] | None = None,
        activation: str = "tanh",
        input_norm: str | None = None,
        bias: bool = True,
        head_init: str = "random",
        calibration: Any = None,
        head: str | None = None,
    ) -> "CALoRForImageClassification":
        """A CALoR model from a model in memory, whose weights it shares; arguments as :meth:`from_pretrained`.

        ``base`` loses its classifier and its label names: the identity stands in its place afterwards.
        """
        if head_init not in ("random", "svd"):
            raise ValueError(f"unknown head_init {head_init!r}; pass 'random' or 'svd'")
        config = config_for(base, head, num_labels, id2label, label2id)
        widths = check_heads(base, config.head_paths)
        width = min(widths)
        if rank is None:
            rank = default_rank(width, config.num_labels)
            logger.info(
                "rank not given: %d, a quarter of min(%d features, %d classes), at most 32",
                rank,
                width,
                config.num_labels,
            )
        check_head(width, config.num_labels, rank, activation, input_norm)
        if rank == min(width, config.num_labels):
            usual = default_rank(width, config.num_labels)
            warnings.warn(
                f"rank {rank} is the full rank of {width} features and {config.num_labels} classes: the head hides "
                f"nothing{f'; try rank={usual}' if usual < rank else ''}",
                stacklevel=2,
            )
        config.rank, config.activation, config.bias, config.input_norm = rank, activation, bias, input_norm

        with torch.device("meta"):
            model = cls(config)
        classifiers = [cast("nn.Linear | nn.Conv2d", base.get_submodule(path)) for path in config.head_paths]
        new_head = model._build_head(widths).to(classifiers[0].weight.device)
        if head_init == "svd":
            batches = [calibration] if isinstance(calibration, Tensor | Mapping) else calibration
            features = None if calibration is None else head_inputs(base, config.head_paths, batches)
            parts = [None] * len(widths) if features is None else features.split(widths, dim=1)
            heads = cast("Sequence[LowRankHead]", getattr(new_head, "heads", [new_head]))
            for part_of_head, classifier, part in zip(heads, classifiers, parts, strict=True):
                svd_init(part_of_head, classifier, part)
        take_out_heads(base, config.head_paths)
        forget_labels(base.config)
        model.backbone, model.low_rank_head = base, new_head
        config.base_config = base.config
        config._attn_implementation = base.config._attn_implementation
        config.dtype = base.dtype
        model.train(base.training)
        return model

    @classmethod
    def from_config(cls, config: PretrainedConfig, **kwargs: Any) -> "CALoRForImageClassification":
        """Random weights, from a :class:`CALoRConfig`, or a base configuration and :meth:`from_base`'s arguments."""
        if isinstance(config, CALoRConfig):
            return cast(CALoRForImageClassification, cls._from_config(config, **kwargs))
        return cls.from_base(architecture_of(config)._from_config(copy.deepcopy(config)), **kwargs)
