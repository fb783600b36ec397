"""`calor-hf audit`: attack a model, and keep what is rebuilt."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calor_hf.attacks import ATTACKS
from calor_hf.attacks._base import CHUNK_SIZE, check_labels
from calor_hf.auditing import run_attack
from calor_hf.cli._common import load_public_images, log_to_terminal
from calor_hf.core.processes import process_state
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.generators import load_generator
from calor_hf.layers.hf_target import HFTarget


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 1 when the target's scores are not finite; 2 for options or data that are refused, or a full disk; 130 after
        Ctrl-C.
    """
    options = _parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="calor-hf audit",
        description="Attack an image classifier and keep the images that are rebuilt from it. Use it under accelerate"
        " launch to share the classes between devices and nodes.",
    )
    add = parser.add_argument
    add("--target", required=True, help="model under attack, defended or not: folder or Hub id")
    add("--attacks", nargs="+", default=["gmi", "plg"], help="names (calor-hf list); default: gmi plg")
    add("--generator", default="renderer", help="what they paint with: folder or Hub id of a trained prior, or"
        " renderer, the very program that drew the synthetic faces; default: renderer")  # fmt: skip
    add("--classes", default=None, help="classes to attack, such as 0-99 or 3,7,9; default: the first 100")
    add("--images-per-class", type=int, default=5, help="reconstructions of each class; default: 5")
    add("--preset", default="original", help="original, or calor: as the paper's tables were made; default: original")
    add("--budget", default="paper", help="paper, demo (a twentieth), or a factor; default: paper")
    add(
        "--settings", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the attacks (calor-hf list ATTACK)"
    )
    add("--public-dataset", help="public images, for attacks that need some (lomma): folder, parquet file or Hub id;"
        " default: samples of the generator")  # fmt: skip
    add("--chunk-size", type=int, default=CHUNK_SIZE, help=f"images attacked at a time; default: {CHUNK_SIZE}")
    add("--seed", type=int, default=0, help="of every draw; default: 0")
    add("--output-dir", default="outputs/audit", help="a sub-folder for each attack; default: outputs/audit")
    add("--resume", action="store_true", help="go on with the classes that are missing")
    add("--overwrite", action="store_true", help="delete earlier results of these attacks first")
    return parser


def _run(options: argparse.Namespace) -> None:
    if options.resume and options.overwrite:
        raise ValueError(
            "--resume goes on with the output folder's attacks, --overwrite deletes them; pass one of them"
        )
    attacks = {name: configured(name, options.preset, options.budget, options.settings) for name in options.attacks}
    state = process_state()
    log_to_terminal(state.is_main_process)
    target = HFTarget.from_pretrained(options.target)
    target.module.to(state.device)
    labels = check_labels(parse_classes(options.classes, target.num_classes), target.num_classes)
    generator = load_generator(options.generator, image_size=target.image_size[0]).to(state.device)
    public = (
        load_public_images(options.public_dataset, target.image_size[0]) if options.public_dataset is not None else None
    )
    rows = []
    for name, attack in attacks.items():
        found = run_attack(
            attack,
            target,
            generator,
            labels,
            Path(options.output_dir) / name,
            name=name,
            target_name=str(options.target),
            images_per_class=options.images_per_class,
            seed=options.seed,
            chunk_size=options.chunk_size,
            public_images=public,
            resume=options.resume,
            overwrite=options.overwrite,
        )
        rows.append(_row(name, found))
    if state.is_main_process:
        print(_table(rows))
        print(f"\nreconstructions and picture grids: {options.output_dir}")
        print("target confidence is the attacked model's own view, which every attack drives up: no measure of leakage")


def configured(name: str, preset: str, budget: str, words: list[str]) -> Any:
    """Attack by name with its settings.

    Raises:
        ValueError: unknown attack, preset, budget or setting.
    """
    try:
        kind = ATTACKS.get(name)
    except KeyError as error:
        raise ValueError(error.args[0]) from error
    try:
        return kind(kind.configure(preset, budget, **kind.config_class.parse(words)))
    except TypeError as error:
        raise ValueError(f"--settings of {name}: {error}") from error


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
