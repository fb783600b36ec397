"""Configuration of a defended model: the base model's configuration, and the defense's name and settings."""

from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import AutoConfig, PretrainedConfig

from calor_hf.core.files import reading
from calor_hf.core.validation import size_error, type_error
from calor_hf.defenses import DEFENSES, Defense

_SHAPE = {
    "base_config": PretrainedConfig | dict | None, "base_class": str | None, "head_paths": list[str],
    "defense": str | None, "defense_settings": dict[str, Any] | None,
    "id2label?": dict | None, "label2id?": dict | None, "num_labels?": int | None, "architectures?": list[str] | None,
}  # fmt: skip


class DefendedConfig(PretrainedConfig):
    """Configuration from which a defended model is rebuilt; ``config.json`` alone is enough.

    Args:
        base_config: Configuration of the base model, or its dictionary with ``model_type``.
        base_class: Name of the base model's class in transformers.
        head_paths: Paths of the base model's classifiers, as in ``named_modules``, one in most models; loading does not
            search for them.
        defense: Name of the defense in the registry. None means :attr:`only_defense`, or ``none``.
        defense_settings: Settings of the defense; those left out keep their defaults.
        kwargs: ``num_labels``, ``id2label``, ``label2id`` and the other arguments of every configuration.

    Attributes:
        only_defense: The one defense that models of this type have. None means any.
    """

    model_type = "defended"
    only_defense: ClassVar[str | None] = None
    sub_configs = {"base_config": AutoConfig}  # noqa: RUF012
    keys_to_ignore_at_inference = ["features", "loss_terms", "hidden_states", "attentions"]  # noqa: RUF012

    def __init__(
        self,
        base_config: PretrainedConfig | dict[str, Any] | None = None,
        base_class: str | None = None,
        head_paths: Sequence[str] = (),
        defense: str | None = None,
        defense_settings: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        own = {"base_config": base_config, "base_class": base_class, "head_paths": head_paths, **kwargs}
        own |= {"defense": defense, "defense_settings": defense_settings}
        problem = size_error(own) or type_error(own, _SHAPE)
        if not problem and self.only_defense is not None and defense not in (None, self.only_defense):
            problem = f"a model of type {self.model_type} has the defense '{self.only_defense}', not '{defense}'"
        if problem:
            raise ValueError(f"the configuration of this defended model is damaged: {problem}")
        if isinstance(base_config, dict):
            values = dict(base_config)
            with reading("base_config in the configuration of this defended model"):
                base_config = AutoConfig.for_model(values.pop("model_type"), **values)
        self.base_config = base_config
        self.base_class = base_class
        self.head_paths = list(head_paths)
        self.defense = defense or self.only_defense or "none"
        self.defense_settings = dict(defense_settings or {})
        kwargs.pop("auto_map", None)  # names the code file of a standalone model; a copy would lack that file
        with reading("the configuration of this defended model"):
            super().__init__(**kwargs)

    def make_defense(self) -> Defense[Any]:
        """Build the defense, with its settings checked.

        Raises:
            ValueError: no such defense is registered here, or a setting is refused.
        """
        try:
            method = DEFENSES.get(self.defense)
        except KeyError as error:
            raise ValueError(
                f"{error.args[0]}. A model of this defense needs the package that registers it (import it first), or a "
                "newer calor_hf"
            ) from None
        return method(method.config_class.from_dict(self.defense_settings))
