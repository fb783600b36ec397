"""LoRA adapters of peft on a defended model."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from calor_hf.modeling.modeling_defended import DefendedForImageClassification


def without_adapters(model: Any) -> Any:
    """The model, or the one inside a ``PeftModel``."""
    inside = getattr(model, "get_base_model", None)
    return model if inside is None else inside()


def lora_config(model: DefendedForImageClassification, **settings: Any) -> Any:
    """``peft.LoraConfig`` that fits ``model``: adapters in the backbone, the head trained and saved whole.

    peft knows neither which layers of a defended model are the backbone's nor that its head is new. Adapters go to
    every linear layer of the backbone (to its convolutions, if it has no linear layer); the head, and batch norms,
    whose statistics move in training, are saved with the adapter.

    Args:
        model: The defended model.
        settings: As for ``peft.LoraConfig``: ``r``, ``lora_alpha``, ``target_modules``, ... ``modules_to_save`` are
            added to ours.

    Raises:
        ModuleNotFoundError: peft is missing.
        ValueError: the backbone has no layer that takes an adapter.
    """
    try:
        from peft import LoraConfig
    except ModuleNotFoundError:
        raise ModuleNotFoundError('adapters need peft: pip install "calor-hf[peft]"') from None
    modules = [(f"backbone.{path}", module) for path, module in model.backbone.named_modules()]
    linear = [path for path, module in modules if isinstance(module, nn.Linear)]
    convolutions = [path for path, module in modules if isinstance(module, nn.Conv2d) and module.groups == 1]
    targets = settings.pop("target_modules", linear or convolutions)
    if not targets:
        raise ValueError(
            f"{model.config.base_class} has neither linear layers nor convolutions; pass target_modules= the layers "
            "that get an adapter"
        )
    whole = ["classification_head", *(path for path, module in modules if isinstance(module, _BatchNorm))]
    whole += settings.pop("modules_to_save", None) or []
    return LoraConfig(target_modules=targets, modules_to_save=whole, **settings)
