"""Requirements of a training with decoys on its data and its base model."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PretrainedConfig

from calor_hf.core.digests import text_digest
from calor_hf.core.files import read_json, reading
from calor_hf.core.fingerprints import trained_on
from calor_hf.core.label_names import telling_names
from calor_hf.data.bad_images import content_digests
from calor_hf.data.decoys import ABOUT, IDENTITIES, identities_per_class
from calor_hf.data.loading import Splits
from calor_hf.defenses import DEFENSES
from calor_hf.recipes.train_arguments import ModelArguments, defense_settings


def identities_for(model_args: ModelArguments, splits: Splits) -> int:
    """Return the number k of identities per class that a training with these options reads; 0 if it reads none.

    Raises:
        ValueError: the defense needs identities and the data have none, or another k, or unequal numbers of images.
    """
    method, settings = DEFENSES.get(model_args.defense), defense_settings(model_args)
    if not method(method.config_class.from_dict(settings)).identities_per_class:
        return 0
    if IDENTITIES not in splits.train.column_names:
        raise ValueError(
            f"--defense {model_args.defense} trains on data with decoys, and these have no column {IDENTITIES}; make "
            "them with calor-hf decoys deal, and pass the folder that it writes as --dataset"
        )
    k = identities_per_class(splits.train["label"], splits.train[IDENTITIES])
    if settings.get("k", k) != k:
        raise ValueError(f"the data have {k} identities per class, got --k {settings['k']}; leave it out")
    return k


def check_base(model: str, revision: str | None, dataset: str, splits: Splits) -> None:
    """Refuse a base model whose files record that it was trained on the private people of data with decoys.

    Args:
        model: Folder or Hub id of the base model.
        revision: Its revision on the Hub.
        dataset: The data folder.
        splits: Its images. A model that was trained on some of them, and not on all, tells some identities from others.

    Raises:
        ValueError: it was trained on some of them.
    """
    about, folder = Path(dataset).expanduser() / ABOUT, Path(model).expanduser()
    private = read_json(about, {"private_records": list[str]})["private_records"] if about.is_file() else []
    with reading(f"the configuration of {model}"):
        config, _ = PretrainedConfig.get_config_dict(model, revision=revision)
    found = training_records("", [str(name) for name in (config.get("id2label") or {}).values()])
    if (folder / "metrics.json").is_file():
        known = read_json(folder / "metrics.json", {"dataset?": str, "drawn?": bool})
        drawn_private = known.get("drawn") and "private" in known.get("dataset", "")
        found += training_records(None if drawn_private else known.get("dataset", ""), [])
    images = content_digests(splits.train)
    if set(found) & set(private) or 0 < trained_on(folder, images) < len(set(images)):
        raise ValueError(
            f"{model} was trained on the private people of {dataset}, or on some of its identities alone, so it tells "
            "them from the others, and a model that starts from it may, too; pass a base model that has seen "
            "none of them"
        )


def training_records(source: str | None, names: Sequence[str]) -> list[str]:
    """Digests by which training on a set is recognized: of its place (None means drawn), and of its class names."""
    place = "drawn" if source is None else source
    if source and Path(source).expanduser().exists():
        place = str(Path(source).expanduser().resolve())
    told = sorted(names) if telling_names(names) else []
    return [text_digest(value) for value in (place, told) if value]
