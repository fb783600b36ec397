"""Defended image classifiers of calor_hf that need torch and transformers alone.

This file is saved with a model, next to its config.json, and is read with ``trust_remote_code=True``. It builds the
same network from the same configuration and weights, for inference and not for training: the defense's losses and
stages are in calor_hf, whose own classes replace these if it is imported.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

# Configurations


class DefendedConfig(PretrainedConfig):
    """Configuration of the base model, paths of its classifiers, and name and settings of the defense."""

    model_type = "defended"
    sub_configs = {"base_config": AutoConfig}  # noqa: RUF012
    keys_to_ignore_at_inference = ["hidden_states", "attentions"]  # noqa: RUF012

    def __init__(
        self,
        base_config: PretrainedConfig | dict[str, Any] | None = None,
        base_class: str | None = None,
        head_paths: Sequence[str] = (),
        defense: str = "none",
        defense_settings: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(base_config, dict):
            values = dict(base_config)
            base_config = AutoConfig.for_model(values.pop("model_type"), **values)
        self.base_config = base_config
        self.base_class = base_class
        self.head_paths = list(head_paths)
        self.defense = defense
        self.defense_settings = dict(defense_settings or {})
        super().__init__(**kwargs)


class CALoRConfig(DefendedConfig):
    """Configuration of :class:`CALoRForImageClassification`."""

    model_type = "calor"

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # transformers would generate another one
        super().__init__(*args, **kwargs)


# Heads: they compute in float32, also under autocast and in half-precision models


class LowRankHead(nn.Module):
    """``Linear(m -> r)``, an activation, ``Linear(r -> N)``: the head of CALoR and LoFt."""

    def __init__(
        self,
        in_features: int,
        num_labels: int,
        rank: int,
        activation: str = "tanh",
        bias: bool = True,
        input_norm: str | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[activation]
        self.norm = nn.BatchNorm1d(in_features) if input_norm == "batchnorm" else None
        self.down = nn.Linear(in_features, rank, bias=bias)
        self.up = nn.Linear(rank, num_labels, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, num_labels) logits, float32, from (batch, in_features)."""
        with torch.autocast(features.device.type, enabled=False):
            x = _at_least_float32(features)
            if self.norm is not None:
                x = self.norm(x.to(self.norm.weight.dtype)).to(x.dtype)
            return _linear(self.up, self.activation(_linear(self.down, x)))


class BottleneckHead(nn.Module):
    """``Linear(m -> 2k)`` gives mean and deviation of a normal code, ``Linear(k -> N)`` the scores: the head of MID."""

    def __init__(self, in_features: int, num_labels: int, sample_at_eval: bool = True, **_: Any) -> None:
        super().__init__()
        self.width = in_features // 2
        self.sample_at_eval = sample_at_eval
        self.encoder = nn.Linear(in_features, 2 * self.width)
        self.decoder = nn.Linear(self.width, num_labels)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, num_labels) logits, float32, from (batch, in_features); with noise if the model has it."""
        with torch.autocast(features.device.type, enabled=False):
            code, raw = _linear(self.encoder, _at_least_float32(features)).split(self.width, dim=1)
            if self.training or self.sample_at_eval:
                raw = raw - 5.0
                log_std = torch.where(raw < -15, raw, F.softplus(raw.clamp_min(-15)).log())
                code = code + log_std.exp() * torch.randn_like(code)
            return _linear(self.decoder, code)


class DecoyHead(nn.Module):
    """Scores of k identities per class; a class scores the logsumexp over its own: the head of decoys."""

    def __init__(self, in_features: int, num_labels: int, k: int = 4, rank: int | None = None) -> None:
        super().__init__()
        self.k = k
        self.scorer: nn.Linear | LowRankHead = (
            nn.Linear(in_features, k * num_labels) if rank is None else LowRankHead(in_features, k * num_labels, rank)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(batch, num_labels) logits, float32, from (batch, in_features)."""
        with torch.autocast(features.device.type, enabled=False):
            x = _at_least_float32(features)
            scores = _linear(self.scorer, x) if isinstance(self.scorer, nn.Linear) else self.scorer(x)
            return cast(Tensor, scores.unflatten(-1, (-1, self.k)).logsumexp(dim=-1))


class MeanOfHeads(nn.Module):
    """Heads of a base model with several classifiers: each reads its part of the features, the scores are averaged."""

    def __init__(self, heads: Sequence[nn.Module], widths: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.widths = list(widths)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, num_labels) logits from (batch, all features)."""
        parts = features.split(self.widths, dim=1)
        return torch.stack([head(part) for head, part in zip(self.heads, parts, strict=True)]).mean(0)


_ACTIVATIONS: Any = {"tanh": torch.tanh, "identity": nn.Identity(), "relu": F.relu, "sigmoid": torch.sigmoid}
HEADS: dict[str, type[nn.Module]] = {
    "calor": LowRankHead,
    "loft": LowRankHead,
    "temperature": LowRankHead,
    "mid": BottleneckHead,
    "decoys": DecoyHead,
}


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    # A layer that was cast to half precision still computes in float32.
    if getattr(layer.weight, "dtype", x.dtype) == x.dtype:
        return cast(Tensor, layer(x))
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


# The base model without its classifiers


class NoHead(nn.Identity):
    """Replaces the classifier."""

    @property
    def weight(self) -> Tensor:
        """No weight: some base models initialize the one they expect here."""
        return torch.empty(0)


class HeadSlot(NoHead):
    """Replaces one of several classifiers; the mean over all is their inputs side by side."""

    def __init__(self, widths: Sequence[int], index: int, channels_first: bool) -> None:
        super().__init__()
        self.count = len(widths)
        self.padding = (sum(widths[:index]), sum(widths[index + 1 :]))
        self.channels_first = channels_first

    def forward(self, input: Tensor) -> Tensor:
        """(batch, width) to (batch, all widths), zeros for the others; other axes stay."""
        before_axis = (0, 0) * (input.ndim - 2) if self.channels_first else ()
        return F.pad(input, (*before_axis, *self.padding)) * self.count


def _take_out_heads(model: nn.Module, paths: Sequence[str]) -> list[int]:
    heads: list[Any] = [model.get_submodule(path) for path in paths]
    widths = [head.weight.shape[1] for head in heads]
    for index, (path, head) in enumerate(zip(paths, heads, strict=True)):
        parent, _, name = path.rpartition(".")
        slot = HeadSlot(widths, index, isinstance(head, nn.Conv2d)) if len(paths) > 1 else NoHead()
        setattr(model.get_submodule(parent), name, slot)
    return widths


# Models


class DefendedForImageClassification(PreTrainedModel):
    """An image classification model with the head of a defense."""

    config_class = DefendedConfig
    main_input_name = "pixel_values"
    base_model_prefix = ""
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = {"classification_head"}  # noqa: RUF012

    def __init__(self, config: DefendedConfig) -> None:
        super().__init__(config)
        base_class: Any = getattr(transformers, config.base_class or "", None)
        is_model = isinstance(base_class, type) and issubclass(base_class, PreTrainedModel)
        if not is_model:
            raise ValueError(
                f"base_class {config.base_class!r} is no model class of transformers {transformers.__version__}; "
                f"install the version that this model was saved with ({config.transformers_version})"
            )
        if config.defense not in HEADS:
            raise ValueError(
                f"this file has the heads of {', '.join(HEADS)}, not of {config.defense!r}; load the model with "
                "calor_hf"
            )
        self.backbone = base_class._from_config(config.base_config)
        widths = _take_out_heads(self.backbone, config.head_paths)
        kind = HEADS[config.defense]
        heads = [kind(width, config.num_labels, **config.defense_settings) for width in widths]
        self.classification_head = MeanOfHeads(heads, widths) if len(heads) > 1 else heads[0]
        self.main_input_name = self.backbone.main_input_name
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As ``PreTrainedModel.from_pretrained``, but strict.

        Raises:
            RuntimeError: a weight is missing, left over, or of another shape.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        wrong = {name: sorted(map(str, info[name])) for name in info if name.endswith("_keys") and info[name]}
        if wrong:
            raise RuntimeError(f"the saved weights are not those of this model: {wrong}; fetch its files again")
        return (model, info) if output_loading_info else model

    def forward(
        self, pixel_values: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput | tuple[Any, ...]:
        """Scores, and hidden states and attentions of the base model; arguments are those of the model of calor_hf.

        With (batch,) int64 ``labels``, the loss is their cross-entropy.

        Raises:
            RuntimeError: labels in training mode.
        """
        if labels is not None and self.training:
            raise RuntimeError("the losses of the defense are not in this file; train the model with calor_hf")
        return_dict = kwargs.pop("return_dict", None)
        if pixel_values is not None:
            kwargs["pixel_values"] = pixel_values
        for name in {"pixel_values", self.main_input_name} & kwargs.keys():
            if kwargs[name].is_floating_point():
                kwargs[name] = kwargs[name].to(self.backbone.dtype)
        outputs = self.backbone(**kwargs, return_dict=True)
        features = outputs["logits"] if "logits" in outputs else outputs["last_hidden_state"]
        logits = self.classification_head(features.flatten(1))
        result = ImageClassifierOutput(
            loss=None if labels is None else F.cross_entropy(logits, labels),
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )
        as_dict = return_dict if return_dict is not None else self.config.return_dict
        return result if as_dict else result.to_tuple()


class CALoRForImageClassification(DefendedForImageClassification):
    """An image classification model with the low-rank head of CALoR."""

    config_class = CALoRConfig
