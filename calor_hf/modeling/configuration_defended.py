"""Configuration of a defended model: the base model's configuration, and the defense's name and settings."""

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from calor_hf.core.files import reading
from calor_hf.core.shapes import size_error, type_error
from calor_hf.defenses import DEFENSES, Defense

_SHAPE = {
    "base_config": PretrainedConfig | dict | None, "base_class": str | None, "head_paths": list[str],
    "id2label?": dict | None, "label2id?": dict | None, "num_labels?": int | None, "architectures?": list[str] | None,
}  # fmt: skip


class WrappedConfig(PretrainedConfig):
    """What every model around a base model saves: enough to rebuild it from ``config.json`` alone.

    Args:
        base_config: Configuration of the base model, or its dictionary with ``model_type``.
        base_class: Name of the base model's class in transformers.
        head_paths: Paths of the base model's classifiers, as in ``named_modules``, one in most models; loading never
            searches.
        kwargs: ``num_labels``, ``id2label``, ``label2id`` and what else any configuration takes.
    """

    sub_configs = {"base_config": AutoConfig}  # noqa: RUF012
    keys_to_ignore_at_inference = ["features", "loss_terms", "hidden_states", "attentions"]  # noqa: RUF012

    def __init__(
        self,
        base_config: PretrainedConfig | dict[str, Any] | None = None,
        base_class: str | None = None,
        head_paths: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        own = {"base_config": base_config, "base_class": base_class, "head_paths": head_paths, **kwargs}
        if problem := size_error(own) or type_error(own, _SHAPE):
            raise ValueError(f"the configuration of this defended model is damaged: {problem}")
        if isinstance(base_config, dict):
            values = dict(base_config)
            with reading("base_config in the configuration of this defended model"):
                base_config = AutoConfig.for_model(values.pop("model_type"), **values)
        self.base_config = base_config
        self.base_class = base_class
        self.head_paths = list(head_paths)
        kwargs.pop("auto_map", None)  # names a file beside the model for those without calor_hf; a copy would lack it
        with reading("the configuration of this defended model"):
            super().__init__(**kwargs)

    @property
    def defense_name(self) -> str:
        """Name of the defense in the registry."""
        raise NotImplementedError

    def defense_settings_dict(self) -> dict[str, Any]:
        """Settings of the defense, as plain values."""
        raise NotImplementedError

    def set_defense(self, settings: dict[str, Any]) -> None:
        """Write settings of the defense into the configuration."""
        raise NotImplementedError

    def make_defense(self) -> Defense[Any]:
        """The defense, with its settings checked.

        Raises:
            ValueError: no such defense is registered here, or a setting is refused.
        """
        try:
            method = DEFENSES.get(self.defense_name)
        except KeyError as error:
            raise ValueError(
                f"{error.args[0]}. A model of this defense needs the package that registers it (import it first), or a "
                "newer calor_hf"
            ) from None
        return method(method.config_class.from_dict(self.defense_settings_dict()))


class DefendedConfig(WrappedConfig):
    """Configuration of :class:`~calor_hf.modeling.modeling_defended.DefendedForImageClassification`.

    Args:
        base_config: As in :class:`WrappedConfig`.
        base_class: As in :class:`WrappedConfig`.
        head_paths: As in :class:`WrappedConfig`.
        defense: Name of the defense in the registry.
        defense_settings: Its settings; those left out keep their defaults.
        kwargs: As in :class:`WrappedConfig`.
    """

    model_type = "defended"

    def __init__(
        self,
        base_config: PretrainedConfig | dict[str, Any] | None = None,
        base_class: str | None = None,
        head_paths: Sequence[str] = (),
        defense: str = "none",
        defense_settings: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if problem := type_error([defense, defense_settings], list[str | dict[str, Any] | None], "defense"):
            raise ValueError(f"the configuration of this defended model is damaged: {problem}")
        self.defense = defense
        self.defense_settings = dict(defense_settings or {})
        super().__init__(base_config, base_class, head_paths, **kwargs)

    @property
    def defense_name(self) -> str:
        """Name of the defense in the registry."""
        return self.defense

    def defense_settings_dict(self) -> dict[str, Any]:
        """Settings of the defense, as plain values."""
        return dict(self.defense_settings)

    def set_defense(self, settings: dict[str, Any]) -> None:
        """Write settings of the defense into the configuration."""
        self.defense_settings = dict(settings)
