"""What becomes of a model when it leaves this machine."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForImageClassification

from calor_hf.core.label_names import numbered, telling_names
from calor_hf.modeling.configuration_defended import WrappedConfig

logger = logging.getLogger(__name__)

PROCESSOR = "preprocessor_config.json"


@contextmanager
def fit_to_publish(config: WrappedConfig, anonymize_labels: bool) -> Iterator[None]:
    """Inside, ``config`` holds no path of this machine and, if so wished, numbers in the place of class names."""
    base: Any = config.base_config
    kept = config.id2label, config.label2id, base.name_or_path
    telling = telling_names(config.id2label.values())
    if telling and not anonymize_labels:
        logger.warning(
            "%d class names are published with the model (%s, ...); if they are people's, pass anonymize_labels=True",
            len(telling),
            telling[0],
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


def stock_copy(folder: Path, into: Path) -> Path:
    """The folder of a saved model as it is published: a copy as a stock model where the classifier was kept.

    Args:
        folder: The saved model.
        into: Empty folder for the copy.

    Returns:
        ``into``, or ``folder`` itself where there is no stock model with the same scores.
    """
    config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, WrappedConfig) or config.make_defense().own_head:
        return folder
    AutoModelForImageClassification.from_pretrained(folder, dtype="auto").to_base().save_pretrained(into)
    if (folder / PROCESSOR).is_file():
        shutil.copy(folder / PROCESSOR, into)
    return into
