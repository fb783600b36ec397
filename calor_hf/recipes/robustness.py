"""Robustness of a model to adversarial examples and backdoors."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calor_hf._version import __version__
from calor_hf.core.config import setting
from calor_hf.core.files import check_writable, write_json
from calor_hf.core.label_names import class_order
from calor_hf.core.processes import process_state
from calor_hf.core.report_text import percent
from calor_hf.data.images import ImageDataset
from calor_hf.data.loading import Splits
from calor_hf.data.public_images import labeled_pixels
from calor_hf.recipes.backdoor import recorded_backdoor
from calor_hf.recipes.common import check_apart, is_embedded, log_to_terminal
from calor_hf.recipes.data_options import DataOptions
from calor_hf.robustness import (
    ADVERSARIAL,
    RADII,
    TRIGGERS,
    AdversarialResult,
    BackdoorResult,
    Share,
    adversarial,
    caveats,
    robust_accuracy,
)
from calor_hf.robustness.adversarial import BATCH_SIZE, check_attacks, predict
from calor_hf.robustness.backdoor import backdoor_rates, trigger_named
from calor_hf.robustness.gradient import library
from calor_hf.robustness.robust_accuracy import check_radius
from calor_hf.targets.hf_target import HFTarget
from calor_hf.training.metrics import some_samples

RESULT = "robustness.json"


@dataclass(frozen=True, kw_only=True)
class RobustnessOptions(DataOptions):
    """Options of :func:`robustness`.

    Raises:
        ValueError: a value is refused.
    """

    target: str = field(metadata={"help": "Model under attack, defended or not: folder or Hub id"})
    attacks: Sequence[str] = setting(
        tuple(ADVERSARIAL),
        f"{', '.join(ADVERSARIAL)}; none for the backdoor alone; default: all",
        nargs="*",
        metavar="ATTACK",
        known=ADVERSARIAL,
    )
    targeted: bool = setting(False, "Also attack toward the class after the true one")
    transfer_from: str | None = setting(
        None,
        "Also transfer examples from this model, best an undefended one: a check for masked gradients",
        metavar="MODEL",
    )
    backdoor: str | None = setting(
        None,
        f"Trigger: {' or '.join(TRIGGERS)}; default: that of the target's training",
        metavar="NAME",
        known=TRIGGERS,
    )
    eps: Sequence[float] = setting(
        RADII,
        "Radii of robust accuracy: changes of a value in [0, 1]; measured with any --attacks; none to leave it out; "
        "default: those that Torp et al. compare with leakage",
        nargs="*",
        metavar="EPS",
    )
    max_images: int = setting(500, "Maximum number of test images, evenly spread")
    batch_size: int = setting(BATCH_SIZE, "Images at a time")
    seed: int = setting(0, "Seed of the attacks, and of a trigger that is not recorded")
    output_dir: Path = setting(Path("outputs/robustness"), f"for {RESULT}")
    overwrite: bool = setting(False, "Replace an earlier result")

    def __post_init__(self) -> None:
        """Refuse values before any work."""
        super().__post_init__()
        check_attacks(self.attacks)
        for eps in self.eps:
            check_radius(eps)
        if self.backdoor is not None:
            trigger_named(self.backdoor)
        if not self.attacks and self.backdoor is None and recorded_backdoor(self.target) is None:
            raise ValueError("nothing to do: pass --attacks, --backdoor, or both")
        for flag, number, least in (
            ("--max-images", self.max_images, 1), ("--batch-size", self.batch_size, 1), ("--seed", self.seed, 0),
        ):  # fmt: skip
            if number < least:
                raise ValueError(f"{flag} must be >= {least}, got {number}")


def robustness(options: RobustnessOptions) -> dict[str, Any]:
    """Attack a model with adversarial examples, and with the trigger of its backdoor; write ``robustness.json``.

    Returns:
        Content of the file.

    Raises:
        FloatingPointError: the target's scores are not finite.
        ImportError: the library of the attacks is missing.
        FileExistsError: there is a result, and ``overwrite`` is off.
        ValueError: models or data that do not fit together.
    """
    check_apart(options.output_dir, options.dataset)
    file = options.output_dir / RESULT
    if options.attacks:
        library()
    if file.exists() and not options.overwrite:
        raise FileExistsError(f"{file} holds a result already; pass another --output-dir, or --overwrite to replace it")
    log_to_terminal()
    device = process_state().device
    target = as_read(HFTarget.from_pretrained(options.target))
    target.module.to(device)
    if options.dataset is None and not is_embedded(target):
        raise ValueError("the target's classes are not the synthetic faces, so its data are not known; pass --dataset")
    other = None
    if options.transfer_from is not None:
        other = HFTarget.from_pretrained(options.transfer_from)
        other = as_read(other) if other.image_size == target.image_size else other
        other.module.to(device)
        order = class_order(other.class_names, target.class_names, "--transfer-from")
        if order is not None:
            own = other.head
            other.head = lambda features: own(features)[:, order]
    recorded = recorded_backdoor(options.target)
    name = options.backdoor or (recorded["trigger"]["name"] if recorded else None)
    seed = recorded["seed"] if recorded and recorded["trigger"]["name"] == name else options.seed
    trigger = None if name is None else trigger_named(name, seed)
    if trigger is not None:
        trigger(torch.zeros(1, 3, *target.image_size))  # a trigger that does not fit is refused before any work
    images, labels = attacked_images(options.load_for(target), target, options.max_images)
    check_writable(file.parent)

    results: list[AdversarialResult] = []
    for targeted in (False, True) if options.targeted else (False,):
        for source in (None, other) if other is not None else (None,):
            chosen = [attack for attack in options.attacks if source is None or attack != "one_pixel"]
            if chosen:
                results += adversarial(
                    target, images, labels, chosen, targeted, options.seed, source, options.batch_size
                )
    radii = options.eps if options.attacks else ()
    robust = {eps: robust_accuracy(target, images, labels, eps, options.seed, options.batch_size) for eps in radii}
    found = None if trigger is None else backdoor_rates(target, images, labels, trigger, batch_size=options.batch_size)
    accuracy = Share.of(predict(target, images, options.batch_size) == labels)
    notes = caveats(results) if results else []
    if target.stochastic:
        notes.append("The target answers at random; the rates hold for one draw of its answers.")
    numbers = {
        "version": __version__,
        "target": str(options.target),
        "transfer_from": options.transfer_from,
        "dataset": options.dataset or f"synthetic faces, {target.num_classes} identities",
        "images": len(images),
        "seed": options.seed,
        "accuracy": accuracy.to_dict(),
        "robust_accuracy": [{"eps": eps, **share.to_dict()} for eps, share in robust.items()],
        "adversarial": [result.to_dict() for result in results],
        "backdoor": None if found is None else found.to_dict() | {"training": recorded},
        "caveats": notes,
    }
    write_json(file, numbers, indent=2)
    print()
    print(table(accuracy, robust, results, found))
    print("\n" + "\n".join(notes))
    print(f"\nnumbers: {file}")
    return numbers


def as_read(target: HFTarget) -> HFTarget:
    """Let the target take images that its processor has already resized and cropped: no crop cuts a trigger."""
    target.pixel_input = dataclasses.replace(target.pixel_input, resize_to=None)
    return target


def attacked_images(splits: Splits, target: HFTarget, count: int) -> tuple[Tensor, Tensor]:
    """Return at most ``count`` test images in [0, 1], as the network reads them before normalization, and labels."""
    if target.processor is None:
        pixels, labels = labeled_pixels(some_samples(splits.test, count), target.image_size[0])
        return pixels.float() / 255, labels
    samples = list(some_samples(ImageDataset(splits.test, target.processor, keep_bytes=0), count))
    pixels = torch.stack([sample["pixel_values"] for sample in samples])
    images = target.pixel_input.images(pixels).clamp(0, 1)
    return images, torch.tensor([sample["labels"] for sample in samples])


def table(
    accuracy: Share,
    robust: Mapping[float, Share],
    results: Sequence[AdversarialResult],
    backdoor: BackdoorResult | None,
) -> str:
    """Format every rate, starting with ``accuracy`` on unchanged images, with number of images and 95 % interval."""
    rows = [["test accuracy", table_cell(accuracy), ""]]
    rows += [[f"robust accuracy, eps {eps:g}", table_cell(share), ""] for eps, share in robust.items()]
    if results:
        rows += [[""] * 3, ["success of an attack", "of images where it was not so before", "of all images"]]
    for result in results:
        kind = (" -> y + 1" if result.targeted else "") + (", made elsewhere" if result.transferred else "")
        rows.append([result.attack + kind, table_cell(result.changed), table_cell(result.all)])
    if backdoor is not None:
        name, wanted = backdoor.trigger["name"], backdoor.target_class
        rows += [[""] * 3, [f"backdoor {name}", f"of images of other classes than {wanted}", "of all images"]]
        rows.append([f"taken for class {wanted}", table_cell(backdoor.success_of_others), table_cell(backdoor.success)])
        rows.append(["the same without the trigger", table_cell(backdoor.without_trigger), ""])
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def table_cell(share: Share) -> str:
    """A share in percent with its 95 % interval and its number of images."""
    if not share.count:
        return "no image"
    low, high = share.interval
    ends = ", ".join(percent(end, 2).removesuffix(" %") for end in (low, high))
    return f"{percent(share.value, 2):>8} [{ends}] n = {share.count}"
