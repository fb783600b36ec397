"""`calor-hf prior`: train the generator of an attack on public images, or take over a trained one."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from calor_hf.core.files import saving
from calor_hf.core.processes import process_state
from calor_hf.core.stop_request import sigterm_as_ctrl_c
from calor_hf.generators import import_stylegan2
from calor_hf.priors import PRIORS, train_prior
from calor_hf.priors.folder import clear, refuse_used
from calor_hf.recipes.common import load_public_images, log_to_terminal, settings_of
from calor_hf.targets.hf_target import HFTarget


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 1 when a loss is not finite; 2 for options or data that are refused; 130 after Ctrl-C or SIGTERM.
    """
    options = _parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        with sigterm_as_ctrl_c():
            _run(options)
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'stopped'}: the same command with --resume goes on", file=sys.stderr)
        return 130
    except FloatingPointError as error:
        print(f"calor-hf prior: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"calor-hf prior: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="calor-hf prior",
        description="Train the generator that an attack paints with, on public images. Use it under accelerate launch"
        " for several devices.",
    )
    add = parser.add_argument
    add("--prior", default="gmi", help="gmi or stylegan2 (serve any target), or ked, plg or lokt (for one target);"
        " default: gmi")  # fmt: skip
    add("--dataset", help="public images: folder, parquet file or Hub id; default: drawn people, none of the private")
    add("--crop", type=int, help="side of the middle square that is kept, in pixels of the original; default: all")
    add("--image-size", type=int, default=64, help="side in pixels, a power of two; default: 64")
    add("--target", help="model under attack, folder or Hub id: for ked, plg and lokt")
    add("--settings", nargs="*", default=[], metavar="NAME=VALUE", help="settings (calor-hf list PRIOR shows them)")
    add("--output-dir", default="outputs/prior", help="folder of the generator; default: outputs/prior")
    add("--seed", type=int, default=0, help="of weights and draws; default: 0")
    add("--save-steps", type=int, default=500, help="steps between checkpoints and sample grids; default: 500")
    add("--num-workers", type=int, default=0, help="processes that load images; default: 0")
    add(
        "--import",
        dest="import_file",
        metavar="FILE",
        help="train nothing: take over a StyleGAN2 of the official PyTorch code, a .pkl (read without running it) or"
        " weights (.safetensors, .pt)",
    )
    add("--push-to-hub", metavar="ID", help="push the finished generator to this model on the Hub")
    add("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    add("--overwrite", action="store_true", help="delete an earlier prior in the output folder first")
    return parser


def _import(options: argparse.Namespace) -> None:
    taken = {"--target": options.target, "--dataset": options.dataset, "--crop": options.crop,
             "--settings": options.settings, "--resume": options.resume}  # fmt: skip
    useless = [name for name, value in taken.items() if value]
    if useless:
        raise ValueError(f"--import trains nothing, so {', '.join(useless)} cannot be meant; pass either")
    folder = Path(options.output_dir)
    if not options.overwrite:
        refuse_used(folder)
    log_to_terminal(True)
    generator = import_stylegan2(options.import_file)
    clear(folder)
    with saving(folder):
        generator.save_pretrained(folder)
    print(f"saved the generator ({generator.image_size} pixels) in {folder}")
    if options.push_to_hub:
        generator.push_to_hub(options.push_to_hub)


def _run(options: argparse.Namespace) -> None:
    if options.import_file:
        _import(options)
        return
    if options.prior not in PRIORS.names():
        raise ValueError(f"--prior must be one of {', '.join(PRIORS.names())}, got {options.prior}")
    if options.save_steps < 1 or options.seed < 0:
        raise ValueError(f"--save-steps must be >= 1 and --seed >= 0, got {options.save_steps} and {options.seed}")
    if options.resume and options.overwrite:
        raise ValueError("--resume goes on with the output folder's prior, --overwrite deletes it; pass one of them")
    if options.image_size < 1 or (options.crop is not None and options.crop < 1):
        raise ValueError(f"--image-size and --crop must be >= 1, got {options.image_size} and {options.crop}")
    kind = PRIORS.get(options.prior)
    if kind.needs_target and options.target is None:
        raise ValueError(f"--prior {options.prior} asks the model under attack for labels; pass --target")
    prior = kind(kind.config_class.from_dict(settings_of(kind.config_class, options.settings, "--settings")))
    state = process_state()
    log_to_terminal(state.is_main_process)
    with state.main_process_first():
        images = load_public_images(options.dataset, options.image_size, options.crop)
    target = HFTarget.from_pretrained(options.target) if options.target and kind.needs_target else None
    folder = Path(options.output_dir)
    generator = train_prior(
        prior,
        images,
        folder,
        target=target,
        seed=options.seed,
        save_steps=options.save_steps,
        num_workers=options.num_workers,
        resume=options.resume,
        overwrite=options.overwrite,
    )
    if state.is_main_process:
        print(f"saved the generator in {folder}, samples in {folder / 'samples'}")
        if options.push_to_hub:
            generator.push_to_hub(options.push_to_hub)


if __name__ == "__main__":
    sys.exit(main())
