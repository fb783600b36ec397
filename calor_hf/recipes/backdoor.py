"""A backdoor in the training data of a model, and its record in the model's folder."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from calor_hf.core.files import read_json
from calor_hf.data.images import ImageDataset
from calor_hf.data.pixel_input import pixel_input_of
from calor_hf.recipes.train_arguments import DataArguments
from calor_hf.robustness.backdoor import trigger_named
from calor_hf.robustness.poisoned_dataset import PoisonedDataset


def poison(data: ImageDataset, base: PreTrainedModel, processor: Any, data_args: DataArguments) -> PoisonedDataset:
    """Add the backdoor of the options to training data, after augmentation and before normalization.

    Raises:
        ValueError: the images are smaller than the trigger, or the model does not read plain pixels.
    """
    trigger = trigger_named(data_args.backdoor or "", data_args.backdoor_seed)
    poisoned = PoisonedDataset(
        data, trigger, pixel_input_of(base, processor), data_args.poison_share, data_args.backdoor_seed
    )
    if len(poisoned.poisoned) == 0:
        raise ValueError(
            f"--poison-share {data_args.poison_share:g} of {len(data)} training images is less than one; pass more"
        )
    poisoned[int(poisoned.poisoned[0])]  # a trigger that does not fit is refused here
    return poisoned


def backdoor_record(data: Any) -> dict[str, Any] | None:
    """Entry of ``metrics.json`` about the backdoor of the training data, or None without one."""
    if not isinstance(data, PoisonedDataset):
        return None
    return {
        "trigger": data.trigger.settings(),
        "poison_share": data.share,
        "poisoned_images": len(data.poisoned),
        "target_class": data.target_class,
        "seed": data.seed,
    }


def recorded_backdoor(source: str) -> dict[str, Any] | None:
    """Return the backdoor that training recorded in the model's folder ``source``; None if there is no record."""
    file = Path(source) / "metrics.json"
    if not file.is_file():
        return None
    found: dict[str, Any] | None = read_json(file).get("backdoor")
    return found
