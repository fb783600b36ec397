"""What becomes of a model when it leaves this machine."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForImageClassification

from calor_hf.core.files import WEIGHTS
from calor_hf.core.label_names import numbered, telling_names
from calor_hf.modeling.configuration_defended import WrappedConfig
from calor_hf.modeling.own_code import add_code, knows

logger = logging.getLogger(__name__)

PROCESSOR = "preprocessor_config.json"
_KEPT = ("config.json", "model.safetensors.index.json", PROCESSOR)


@contextmanager
def fit_to_publish(config: WrappedConfig, anonymize_labels: bool) -> Iterator[None]:
    """Inside, ``config`` holds no path of this machine and, if so wished, numbers instead of class names."""
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


def released_copy(folder: Path, into: Path) -> Path:
    """The folder of a saved model as it is published: loadable by those who have transformers alone.

    A copy as a stock model where the defense kept the classifier, else one with the code of its head.

    Args:
        folder: The saved model.
        into: Folder for the copy; made if need be.

    Returns:
        ``into``, or ``folder`` itself where it is a stock model, or of a defense that the code does not know.
    """
    config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, WrappedConfig):
        return folder
    if config.make_defense().own_head:
        if not knows(config.defense_name):
            return folder
        into.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.name in _KEPT or WEIGHTS.fullmatch(path.name):
                shutil.copy(path, into)
        add_code(into)
        return into
    AutoModelForImageClassification.from_pretrained(folder, dtype="auto").to_base().save_pretrained(into)
    if (folder / PROCESSOR).is_file():
        shutil.copy(folder / PROCESSOR, into)
    return into
