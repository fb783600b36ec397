"""Train the generator of an attack on public images, or import a trained one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calor_hf.core.config import setting
from calor_hf.core.files import read_json, saving
from calor_hf.core.finishing import Finishing
from calor_hf.core.processes import check_logger, process_state
from calor_hf.data.loading import load_public_images
from calor_hf.data.public_images import PublicImages
from calor_hf.generators import Generator, import_stylegan2
from calor_hf.hub.push import check_token
from calor_hf.priors import PRIORS, PriorTraining, size_for, train_prior
from calor_hf.priors.budget import chosen_settings
from calor_hf.priors.folder import RECORD, clear, refuse_used
from calor_hf.recipes.common import check_apart, log_to_terminal, settings_of
from calor_hf.targets.hf_target import HFTarget


@dataclass(frozen=True, kw_only=True)
class PriorOptions:
    """Options of :func:`prior`.

    Raises:
        ValueError: a value is refused.
    """

    prior: str = setting(
        "gmi",
        "gmi, stylegan2 or flow (for any target); ked, plg, lokt or ridge (for one target)",
        known="calor_hf.priors",
    )
    dataset: str | None = setting(
        None, "public images: folder, parquet file or Hub id; default: synthetic faces of other identities"
    )
    image_column: str | None = setting(None, "column with the images; default: image, or the only one with images")
    crop: int | None = setting(
        None, "side of the central square to keep, in original pixels (FFHQ networks: 800 of 1024); default: all"
    )
    image_size: int = setting(64, "side in pixels, a power of two")
    target: str | None = setting(None, "model under attack (ked, plg, lokt, ridge): folder or Hub id")
    minutes: float | None = setting(None, "choose size and steps for so many minutes here, by timing a step")
    settings: Sequence[str] = setting((), "settings (see calor-hf list PRIOR)", nargs="*", metavar="NAME=VALUE")
    output_dir: Path = setting(Path("outputs/prior"), "folder of the generator")
    seed: int = setting(0, "of weights and draws")
    save_steps: int = setting(500, "steps between checkpoints and sample grids")
    num_workers: int = setting(0, "processes that load images")
    import_file: str | None = setting(
        None,
        "import an official PyTorch StyleGAN2 instead of training: .pkl (its code is not run), .safetensors or .pt",
        flags=("--import",),
        metavar="FILE",
    )
    report_to: str | None = setting(
        None,
        "logger of the losses: tensorboard (files in OUTPUT_DIR/runs), trackio, wandb, ...; default: none",
    )
    push_to_hub: str | None = setting(None, "push the finished generator to this Hub model", metavar="ID")
    resume: bool = setting(False, "continue from the checkpoint in the output folder")
    overwrite: bool = setting(False, "delete an earlier prior in the output folder first")

    def __post_init__(self) -> None:
        """Refuse values before any work."""
        if self.import_file:
            taken = {"--target": self.target, "--dataset": self.dataset, "--image-column": self.image_column,
                     "--minutes": self.minutes, "--settings": self.settings, "--resume": self.resume,
                     "--report-to": self.report_to}  # fmt: skip
            if useless := [name for name, value in taken.items() if value]:
                raise ValueError(f"--import trains nothing; leave out {', '.join(useless)}")
            return
        if self.prior not in PRIORS.names():
            raise ValueError(f"--prior must be one of {', '.join(PRIORS.names())}, got {self.prior}")
        if self.save_steps < 1 or self.seed < 0:
            raise ValueError(f"--save-steps must be >= 1 and --seed >= 0, got {self.save_steps} and {self.seed}")
        if self.num_workers < 0:
            raise ValueError(f"--num-workers must be >= 0, got {self.num_workers}")
        if self.resume and self.overwrite:
            raise ValueError(
                "--resume continues the prior in the output folder, --overwrite deletes it; pass one of them"
            )
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ValueError(f"--minutes must be a finite number > 0, got {self.minutes}")
        if self.image_size < 1 or (self.crop is not None and self.crop < 1):
            raise ValueError(f"--image-size and --crop must be >= 1, got {self.image_size} and {self.crop}")
        check_logger(self.report_to)
        if PRIORS.get(self.prior).needs_target and self.target is None:
            raise ValueError(f"--prior {self.prior} needs the model under attack; pass --target")


def prior(options: PriorOptions) -> Generator[Any]:
    """Train or import a generator, save it, and push it if asked to.

    Raises:
        FloatingPointError: a loss is not finite.
        FinishingError: the generator is saved, but drawing samples or pushing it failed.
        FileExistsError: the output folder is used, and is neither to be resumed nor overwritten.
        ValueError: settings or images that the prior does not take.
        KeyboardInterrupt: Ctrl-C; a checkpoint is saved.
    """
    check_apart(options.output_dir, options.dataset)
    if options.push_to_hub:
        check_token(None, options.push_to_hub)
    generator = _import(options) if options.import_file else _train(options)
    if options.push_to_hub and process_state().is_main_process:
        again = f"push it with load_generator({str(options.output_dir)!r}).push_to_hub({options.push_to_hub!r})"
        finishing = Finishing(f"the generator is saved in {options.output_dir}", again)
        with finishing.step("pushing it"):
            generator.push_to_hub(options.push_to_hub)
        finishing.end()
    return generator


def _import(options: PriorOptions) -> Generator[Any]:
    folder = options.output_dir
    if not options.overwrite:
        refuse_used(folder)
    log_to_terminal()
    generator = import_stylegan2(str(options.import_file), options.crop)
    clear(folder)
    with saving(folder):
        generator.save_pretrained(folder)
    print(f"saved the generator ({generator.image_size} pixels) in {folder}")
    return generator


def prior_parts(
    options: PriorOptions, processes: int = 1
) -> tuple[PriorTraining[Any], PublicImages, HFTarget | None, list[str]]:
    """Load what a prior is trained with: settings, public images and target; and a sentence about a chosen size.

    A resumed training keeps the size that was chosen at its start.

    Raises:
        ValueError: settings that the prior does not take, or several processes with ``minutes``.
    """
    kind, state, said = PRIORS.get(options.prior), process_state(), list[str]()
    given = settings_of(kind.config_class, list(options.settings), "--settings")
    with state.main_process_first():
        images = load_public_images(options.dataset, options.image_size, options.crop, options.image_column)
    target = HFTarget.from_pretrained(options.target) if options.target and kind.needs_target else None
    config, record = kind.config_class.from_dict(given), options.output_dir / RECORD
    if options.minutes is not None and options.resume and record.is_file():
        config = kind.config_class.from_dict({name: read_json(record)[name] for name in chosen_settings(kind)} | given)
    elif options.minutes is not None:
        if max(processes, state.num_processes) > 1:
            raise ValueError("--minutes times a single process; run one, or pass --settings instead")
        config, sentence = size_for(kind, given, options.minutes, images, target)
        said.append(f"chosen for {options.minutes:g} minutes: {sentence}")
    return kind(config), images, target, said


def _train(options: PriorOptions) -> Generator[Any]:
    state, folder = process_state(), options.output_dir
    log_to_terminal(state.is_main_process)
    if state.is_main_process and not options.overwrite:
        refuse_used(folder, options.resume)
    method, images, target, said = prior_parts(options)
    print(*said, sep="\n", end="\n" * len(said))
    generator: Generator[Any] = train_prior(
        method, images, folder, target=target, seed=options.seed, save_steps=options.save_steps,
        num_workers=options.num_workers, resume=options.resume, overwrite=options.overwrite, minutes=options.minutes,
        report_to=options.report_to,
    )  # fmt: skip
    if state.is_main_process:
        print(f"saved the generator in {folder}, samples in {folder / 'samples'}")
    return generator
