"""The configuration of a saved model, looked at before transformers builds what it says."""

from typing import Any

from transformers import PretrainedConfig

from calor_hf.core.files import reading
from calor_hf.core.validation import content_error, size_error


def check_config(source: Any, **kwargs: Any) -> None:
    """Refuse a ``config.json`` that is damaged, or asks for a network that no machine holds.

    ``kwargs`` are ``revision``, ``token``, ``cache_dir`` and what else finds the folder or Hub id ``source``.

    Raises:
        OSError: there is none.
        ValueError: it is refused; the message says why.
    """
    with reading(f"the configuration of {source}"):
        values, _ = PretrainedConfig.get_config_dict(source, **kwargs)
    if problem := content_error(values) or size_error(values):
        raise ValueError(f"config.json of {source} is damaged: {problem}")
