"""Decoy identities: what training with them needs of the data."""

from calor_hf.data.decoys import IDENTITIES, identities_per_class
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
