"""CALoR around any image classification model of transformers."""

from os import PathLike
from typing import Any, cast

from transformers import PreTrainedModel

from calor_hf.defenses.calor import CALoR, CALoRDefenseConfig, check_strength
from calor_hf.heads.find_head import check_heads
from calor_hf.modeling.base_model import config_for, refuse_settings
from calor_hf.modeling.configuration_calor import CALoRConfig
from calor_hf.modeling.configuration_defended import WrappedConfig
from calor_hf.modeling.head_start import check_head_init, start_of_heads
from calor_hf.modeling.modeling_defended import DefendedForImageClassification


class CALoRForImageClassification(DefendedForImageClassification):
    """An image classification model whose classifier is a :class:`~calor_hf.heads.low_rank_head.LowRankHead`.

    A model with two classifiers whose mean are its scores (DeiT and LeViT with teacher, SwiftFormer) gets a low-rank
    head of the same rank instead of each.

    Make one with :meth:`from_pretrained` (a base checkpoint or a saved CALoR model), :meth:`from_base` (a model in
    memory) or :meth:`from_config` (random weights).
    """

    config_class = CALoRConfig
    config: CALoRConfig

    def set_loss(self, a: float, b: float) -> None:
        """Strength and sharpness of confidence adaptation; saved with the configuration."""
        check_strength(a, b)
        self.config.ca_a, self.config.ca_b = a, b
        self.defense = self.config.make_defense()

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
        low_rank: bool = True,
        head_init: str = "random",
        calibration: Any = None,
        head: str | None = None,
        **hf_kwargs: Any,
    ) -> "CALoRForImageClassification":
        """A saved CALoR model, rebuilt exactly; or any base checkpoint with a fresh low-rank head.

        Args:
            source: Hub id or folder of a CALoR model or of an image classification model.
            model_args: Handed on by Auto classes; not for users.
            rank: Width of the code; None: :func:`~calor_hf.heads.low_rank_head.default_rank`, logged.
            num_labels: Number of classes; may differ from the checkpoint's. None: the checkpoint's.
            id2label: Names of the classes.
            label2id: Their inverse.
            activation: Between the head's layers.
            input_norm: ``"batchnorm"`` in front of the head, or None.
            bias: Whether the head's layers have biases.
            low_rank: False keeps the base's own classifier: confidence adaptation is then all there is.
            head_init: ``"random"``, or ``"svd"`` to start from the checkpoint's trained classifier.
            calibration: For ``"svd"``: (images, channels, height, width) processed pixel values, or a batch of model
                inputs, or an iterable of such batches.
            head: Path of the classifier's linear layer, where it cannot be found.
            hf_kwargs: ``revision``, ``dtype``, ``attn_implementation`` and what else ``from_pretrained`` takes.

        Raises:
            ValueError: settings of a new head beside a saved CALoR model, or a head that cannot be found or built.
        """
        settings: dict[str, Any] = {
            "rank": rank,
            "activation": activation,
            "input_norm": input_norm,
            "bias": bias,
            "low_rank": low_rank,
        }
        init = None if head_init == "random" else head_init

        def refuse(config: WrappedConfig, classes: int | None) -> None:
            defaults = {"activation": "tanh", "bias": True, "low_rank": True}
            for_base_only = {"head_init": init, "calibration": calibration, "head": head}
            refuse_settings(config, {**settings, "num_labels": classes}, defaults, for_base_only)

        def start(base: PreTrainedModel) -> CALoRForImageClassification:
            labels: dict[str, Any] = {"num_labels": num_labels, "id2label": id2label, "label2id": label2id}
            new: dict[str, Any] = {"head_init": head_init, "calibration": calibration, "head": head}
            return cls.from_base(base, **labels, **settings, **new)

        found = cls._load(source, model_args, hf_kwargs, (num_labels, id2label, label2id), refuse, start)
        return cast(CALoRForImageClassification, found)

    @classmethod
    def from_base(  # type: ignore[override]
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
        low_rank: bool = True,
        ca_a: float = 1.0,
        ca_b: float = 8.0,
        head_init: str = "random",
        calibration: Any = None,
        head: str | None = None,
    ) -> "CALoRForImageClassification":
        """A CALoR model from a model in memory, whose weights it shares; arguments as :meth:`from_pretrained`.

        ``ca_a`` and ``ca_b`` are strength and sharpness of confidence adaptation; ``CALoRTrainer`` sets them from its
        arguments. ``base`` loses its classifier and its label names: the identity stands in its place afterwards.
        """
        check_head_init(head_init)
        if head_init == "svd" and not low_rank:
            raise ValueError("low_rank=False keeps the trained classifier as it is; leave head_init out")
        config = config_for(cls.config_class, base, head, num_labels, id2label, label2id)
        widths = check_heads(base, config.head_paths)
        chosen = CALoRDefenseConfig(
            rank=rank, activation=activation, bias=bias, input_norm=input_norm, low_rank=low_rank, ca_a=ca_a, ca_b=ca_b
        )
        config.set_defense(CALoR.complete(chosen, min(widths), config.num_labels).to_dict())
        start = start_of_heads(head_init, base, config.head_paths, calibration)
        return cast(CALoRForImageClassification, cls._around(base, config, start))


def defend(base: PreTrainedModel, defense: str, **settings: Any) -> DefendedForImageClassification:
    """``base`` with the defense of that name: a :class:`CALoRForImageClassification` for ``calor``.

    Args:
        base: Model in memory, whose weights the defended model shares.
        defense: Name in the registry.
        settings: Arguments of that class's ``from_base``.

    Raises:
        KeyError: no one registered the defense.
    """
    if defense == "calor":
        return CALoRForImageClassification.from_base(base, **settings)
    return DefendedForImageClassification.from_base(base, defense, **settings)
