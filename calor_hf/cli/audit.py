"""`calor-hf audit`: attack a model, judge what is rebuilt, and report it."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from calor_hf.attacks.base import CHUNK_SIZE, check_labels
from calor_hf.auditing import audit, run_attack
from calor_hf.auditing.plan import DEFAULT_ATTACKS, PlannedAttack, plan_attacks
from calor_hf.auditing.private_data import PrivateImages
from calor_hf.auditing.verdict import summary
from calor_hf.cli.report import write_pages
from calor_hf.core.processes import process_state
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.core.stop_request import sigterm_as_ctrl_c
from calor_hf.data.face_renderer import IDENTITY_NAMES
from calor_hf.data.loading import Splits, load_splits
from calor_hf.data.public_images import PublicImages, labeled_pixels
from calor_hf.data.synthetic_faces import sample_identities
from calor_hf.generators import Generator, load_generator
from calor_hf.metrics import METRICS
from calor_hf.recipes.common import check_classes, is_embedded, load_public_images, log_to_terminal
from calor_hf.targets.hf_target import HFTarget

# For the drawn faces: what two cores do in a few minutes.
EMBEDDED_IDENTITIES, EMBEDDED_BUDGET = 16, 0.25


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 1 when the target's scores are not finite; 2 for options or data that are refused, or a full disk; 130 after
        Ctrl-C or SIGTERM.
    """
    options = parse(list(sys.argv[1:] if argv is None else argv))
    try:
        with sigterm_as_ctrl_c():
            _run(options)
    except KeyboardInterrupt:
        print("\nstopped; finished chunks are kept: the same command with --resume goes on", file=sys.stderr)
        return 130
    except FloatingPointError as error:
        print(f"calor-hf audit: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, MemoryError) as error:
        print(f"calor-hf audit: {error}", file=sys.stderr)
        return 2
    return 0


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the options.

    Raises:
        SystemExit: options that are not understood (status 2), or ``--help``.
    """
    parser = _parser()
    options = parser.parse_args(list(words))
    if (options.model is None) == (options.target is None):
        parser.error("pass the model under attack once: calor-hf audit MODEL, or --target MODEL")
    options.target = options.target or options.model
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="calor-hf audit",
        description="Attack an image classifier, let other networks judge what is rebuilt, and write a report. Use it"
        " under accelerate launch to share the classes between devices and nodes. For a model of the drawn faces"
        " nothing but --target is needed.",
    )
    add = parser.add_argument
    add("model", nargs="?", help="model under attack, defended or not: folder or Hub id")
    add("--target", help="the same")
    add("--dataset", help="images that it was trained on, as for calor-hf train; default: the drawn faces")
    add("--evaluation-model", help="image classifier of another architecture, trained on the same people (calor-hf"
        " train --role evaluation): folder or Hub id; for the drawn faces one is trained if none is given")  # fmt: skip
    add("--second-evaluation-model", help="another evaluation model; success is then also counted where both agree")
    add("--embedding", help="network for verification: inception_resnet_vggface2 (of facenet-pytorch), folder or Hub"
        " id, or package.module:function that returns an nn.Module of images in [0, 1] to features")  # fmt: skip
    add("--extractor", help="network for image quality (FID, KID, PRDC): inception_fid (of pytorch-fid), or as"
        " --embedding; only the first gives what is called FID")  # fmt: skip
    add("--attacks", nargs="+", default=list(DEFAULT_ATTACKS), metavar="ATTACK",
        help="such as gmi, plg@calor (a preset), plg:objective=ce,steps=300 (settings); calor-hf list shows names;"
        f" default: {' '.join(DEFAULT_ATTACKS)}")  # fmt: skip
    add("--generator", default="renderer", help="what they paint with: folder or Hub id of a trained prior, or"
        " renderer, the very program that drew the synthetic faces; default: renderer")  # fmt: skip
    add("--classes", help="classes to attack, such as 0-99 or 3,7,9; default: the first 100 (drawn faces:"
        f" {EMBEDDED_IDENTITIES})")  # fmt: skip
    add("--images-per-class", type=int, default=5, help="reconstructions of each class; default: 5")
    add("--preset", default="original", help="original, or calor: as the paper's tables were made; default: original")
    add("--budget", help="paper, demo (a twentieth), or a factor of the published effort; default: paper (drawn faces:"
        f" {EMBEDDED_BUDGET:g})")  # fmt: skip
    add(
        "--settings", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the attacks (calor-hf list ATTACK)"
    )
    add("--metrics", nargs="+", metavar="NAME", help=f"of {', '.join(METRICS.names())}; default: all that the networks"
        " allow, but those that train something")  # fmt: skip
    add("--public-dataset", help="public images, for attacks (lomma) and metrics (decoder_inversion) that need some:"
        " folder, parquet file or Hub id; default: samples of the generator")  # fmt: skip
    add("--include-private-images", action="store_true", help="show private images on the page, beside what was"
        " rebuilt; without it they stay out")  # fmt: skip
    add("--anonymize-labels", action="store_true", help="numbers instead of class names, which are people's")
    add(
        "--reconstructions-only",
        action="store_true",
        help="only attack: no evaluation model, no private images, no report",
    )
    add("--chunk-size", type=int, default=CHUNK_SIZE, help=f"images attacked at a time; default: {CHUNK_SIZE}")
    add("--seed", type=int, default=0, help="of every draw; default: 0")
    add("--output-dir", default="outputs/audit", help="report, page and a sub-folder an attack; default: outputs/audit")
    add("--resume", action="store_true", help="go on with what is missing")
    add("--overwrite", action="store_true", help="delete earlier results of these attacks first")
    return parser


@dataclass
class Parts:
    """What an audit is made of, as its options say.

    Attributes:
        target: The model under attack, on this process's device.
        generator: The prior, there too.
        plans: Attacks.
        labels: Classes attacked.
        embedded: Whether the target's classes are the drawn faces, of which everything else is known.
        budget: Of the attacks.
        public: Public images, or None.
    """

    target: HFTarget
    generator: Generator[Any]
    plans: list[PlannedAttack]
    labels: list[int]
    embedded: bool
    budget: str | float
    public: PublicImages | None


def check_options(options: argparse.Namespace) -> None:
    """Refuse what can be refused before any work.

    Raises:
        ValueError: the message says which option.
    """
    if options.resume and options.overwrite:
        raise ValueError(
            "--resume goes on with the output folder's attacks, --overwrite deletes them; pass one of them"
        )
    for name in options.metrics or ():
        try:
            METRICS.get(name)
        except KeyError as error:
            raise ValueError(f"--metrics: {error.args[0]}") from error
    plan_attacks(options.attacks, options.preset, options.budget or "paper", options.settings)


def parts_of(options: argparse.Namespace) -> Parts:
    """Load what is attacked, and what with.

    Raises:
        ValueError: options that do not fit together, or parts that are not to be had.
    """
    device = process_state().device
    target = HFTarget.from_pretrained(options.target)
    target.module.to(device)
    embedded = options.dataset is None and not options.reconstructions_only and is_embedded(target)
    if options.dataset is None and not embedded and not options.reconstructions_only:
        raise ValueError(
            "the target's classes are not the drawn faces, so the private images are not known; pass --dataset and "
            "--evaluation-model, or --reconstructions-only"
        )
    if options.evaluation_model is None and not embedded and not options.reconstructions_only:
        raise ValueError(
            "no evaluation model: train one with calor-hf train --role evaluation --model ANOTHER_ARCHITECTURE "
            f"--dataset {options.dataset}, and pass it as --evaluation-model; or pass --reconstructions-only"
        )
    budget = options.budget or (EMBEDDED_BUDGET if embedded else "paper")
    plans = plan_attacks(options.attacks, options.preset, budget, options.settings)
    count = min(EMBEDDED_IDENTITIES if embedded else 100, target.num_classes)
    labels = check_labels(parse_classes(options.classes, count), target.num_classes)
    generator = load_generator(options.generator, image_size=target.image_size[0]).to(device)
    public = (
        load_public_images(options.public_dataset, target.image_size[0]) if options.public_dataset is not None else None
    )
    return Parts(target, generator, plans, labels, embedded, budget, public)


def _run(options: argparse.Namespace) -> None:
    check_options(options)
    state = process_state()
    log_to_terminal(state.is_main_process)
    parts = parts_of(options)
    target = parts.target
    common: dict[str, Any] = {
        "images_per_class": options.images_per_class,
        "seed": options.seed,
        "chunk_size": options.chunk_size,
        "public_images": parts.public,
        "resume": options.resume,
        "overwrite": options.overwrite,
        "target_name": str(options.target),
    }
    folder = Path(options.output_dir)
    if options.reconstructions_only:
        _attack_only(parts.plans, target, parts.generator, parts.labels, folder, common, state.is_main_process)
        return
    with state.main_process_first():
        private = load_private(parts, options.dataset)
        evaluation_model = options.evaluation_model or _embedded_evaluation_model(folder / "evaluation_model", target)
    report = audit(
        target,
        parts.plans,
        parts.generator,
        evaluation_model,
        private,
        output_dir=folder,
        second_evaluation_model=options.second_evaluation_model,
        embedding=options.embedding,
        extractor=options.extractor,
        classes=parts.labels,
        budget=parts.budget,
        metrics=options.metrics,
        anonymize_labels=options.anonymize_labels,
        **common,
    )
    if state.is_main_process:
        shown = private if options.include_private_images else None
        pages = write_pages(report, folder, shown, evaluation_model, overwrite=True)
        print(f"\n{summary(report)}")
        print(f"\nreport: {pages[0]}\nnumbers: {folder / 'report.json'}")


def load_private(parts: Parts, dataset: str | None) -> PrivateImages:
    """The images that the target was trained on: of ``dataset``, or drawn."""
    target = parts.target
    splits = load_splits(dataset, num_identities=target.num_classes, image_size=target.image_size[0])
    return private_images_of(splits, target, parts.labels, dataset)


def private_images_of(splits: Splits, target: HFTarget, labels: Sequence[int], source: str | None) -> PrivateImages:
    """Training images of the attacked people and test images of all, at the target's size.

    Raises:
        ValueError: the data have other classes than the target.
    """
    check_classes(splits, target)
    side = target.image_size[0]
    images, of_whom = labeled_pixels(splits.train, side, labels)
    held_images, held_labels = labeled_pixels(splits.test, side)
    drawn = source is None
    return PrivateImages(
        source or "synthetic faces",
        images,
        of_whom,
        held_images,
        held_labels,
        tuple(splits.label_names),
        sample_identities(target.num_classes) if drawn else None,
        tuple(IDENTITY_NAMES) if drawn else (),
    )


def evaluation_model_argv(folder: Path, target: HFTarget) -> list[str]:
    """Options of ``calor-hf train`` for the evaluation model of drawn faces; none: there is one in ``folder``."""
    if (folder / "metrics.json").is_file():
        return []
    words = ["--role", "evaluation", "--num-identities", str(target.num_classes), "--output_dir", str(folder)]
    return [*words, "--resume" if folder.exists() else "--overwrite"]


def _embedded_evaluation_model(folder: Path, target: HFTarget) -> str:
    from calor_hf.recipes.train import train
    from calor_hf.recipes.train_arguments import parse

    words = evaluation_model_argv(folder, target)
    if words:
        print(f"training an evaluation model, once; it is kept in {folder}")
        train(*parse(words))
        torch.manual_seed(0)
    return str(folder)


def _attack_only(
    plans: Sequence[PlannedAttack], target: HFTarget, generator: Any, labels: Sequence[int], folder: Path,
    common: dict[str, Any], main: bool,
) -> None:  # fmt: skip
    rows = []
    for plan in plans:
        found = run_attack(plan.attack, target, generator, labels, folder / plan.name, name=plan.kind, **common)
        rows.append(_row(plan.name, found))
    if main:
        print(_table(rows))
        print(f"\nreconstructions and image grids: {folder}")
        print("target confidence is the attacked model's own view, which every attack drives up: no measure of leakage")


def parse_classes(text: str | None, num_classes: int) -> list[int]:
    """Classes from ``0-99`` or ``3,7,9`` or both; None: the first 100, or as many as there are.

    Raises:
        ValueError: no such list.
    """
    if text is None:
        return list(range(min(100, num_classes)))
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise ValueError(f"expected classes as 0-99 or 3,7,9, got {text!r}")
        found += range(int(first), int(last) + 1) if dash else [int(first)]
    return found


def _row(name: str, found: Reconstruction) -> list[str]:
    cost = found.cost
    return [
        name,
        str(len(found.labels)),
        f"{float(found.scores.double().mean()):.3f}",
        f"{cost.target_passes / len(found.labels):,.0f}",
        f"{cost.seconds:,.0f} s",
    ]


def _table(rows: list[list[str]]) -> str:
    head = ["attack", "images", "target confidence", "target passes an image", "time, all processes"]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]
    )


if __name__ == "__main__":
    sys.exit(main())
