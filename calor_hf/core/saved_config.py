"""Configuration of a saved model, checked before anything is built from it, and its image processor."""

from typing import Any

from transformers import AutoImageProcessor, PretrainedConfig

from calor_hf.core.files import reading
from calor_hf.core.validation import content_error, size_error


def check_config(source: Any, **kwargs: Any) -> None:
    """Refuse a ``config.json`` that is damaged, or asks for a network that no machine holds.

    ``kwargs`` are ``revision``, ``token``, ``cache_dir`` and what else finds the folder or Hub id ``source``.

    Raises:
        OSError: no configuration is found.
        ValueError: it is refused; the message says why.
    """
    with reading(f"the configuration of {source}"):
        values, _ = PretrainedConfig.get_config_dict(source, **kwargs)
    if problem := content_error(values) or size_error(values):
        raise ValueError(f"config.json of {source} is damaged: {problem}")


def processor_of(source: str, **kwargs: Any) -> Any:
    """Image processor of a folder or Hub id; None if it has none."""
    try:
        return AutoImageProcessor.from_pretrained(source, **kwargs)
    except (OSError, ValueError):
        return None
