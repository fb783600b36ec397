"""Audit a saved model: load it, its data, prior and evaluation model, attack it, and write the report and its page."""

import logging
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from calor_hf.attacks.specs import NamedAttack
from calor_hf.auditing import AuditOptions
from calor_hf.auditing.attribute_network import attribute_network
from calor_hf.auditing.audit import CONTROL, attack_control, check_defended, evaluate, load_control, reconstruct
from calor_hf.auditing.evaluation import Evaluator
from calor_hf.auditing.networks import Network, load_network
from calor_hf.auditing.private_data import PRIOR_COMMAND, PrivateImages
from calor_hf.auditing.run import check_begun
from calor_hf.core.files import check_writable, read_json
from calor_hf.core.finishing import Finishing
from calor_hf.core.plain_text import aligned
from calor_hf.core.processes import process_state
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.core.report import REPORT, LeakageReport
from calor_hf.core.report_text import summary
from calor_hf.data.decoys import is_dealt
from calor_hf.data.loading import load_public_images
from calor_hf.data.public_images import PublicImages
from calor_hf.generators import RENDERER, Generator, load_generator
from calor_hf.priors import train_prior
from calor_hf.priors.ridge import RidgePriorConfig, RidgePriorTraining
from calor_hf.recipes.common import check_apart, is_embedded, log_to_terminal
from calor_hf.recipes.data_options import DataOptions
from calor_hf.recipes.report import write_pages
from calor_hf.recipes.train import train
from calor_hf.recipes.train_arguments import parse, undefended
from calor_hf.targets.base import Target
from calor_hf.targets.hf_target import HFTarget

logger = logging.getLogger(__name__)

EVALUATE_AGAIN = "mend that, and run the same command with --resume: it attacks nothing again"
SYNTHETIC_CLASSES, SYNTHETIC_BUDGET = 16, 0.25  # a few minutes on two cores
AUTO, ATTRIBUTES = "auto", "attributes.safetensors"
OWN_PRIOR, OWN_PRIOR_SIDE = "ridge", 64


@dataclass(frozen=True, kw_only=True)
class AuditRecipe(AuditOptions, DataOptions):
    """Options of :func:`run_audit`: those of an audit, and where its parts come from."""

    model: str | None = field(
        default=None,
        metadata={
            "positional": True,
            "one_of": True,
            "help": "Model under attack, defended or not: folder or Hub id",
        },
    )
    target: str | None = field(default=None, metadata={"one_of": True, "help": "The same, as an option"})
    evaluation_model: str | None = field(
        default=None,
        metadata={
            "help": "Image classifier of another architecture, trained on the same classes (calor-hf train --role"
            " evaluation): folder or Hub id; default: for synthetic faces one is trained"
        },
    )
    generator: str | None = field(
        default=None,
        metadata={
            "help": "Prior of the attacks: folder or Hub id (calor-hf prior), or diffusers:FOLDER_OR_ID, a pipeline of"
            " diffusers; or ridge, fitted on the way to --public-dataset and to the features of the target (and another"
            " one to those of the control); for synthetic faces also renderer, the program that drew them, which is"
            " their default"
        },
    )
    public_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Public images, for the generator ridge, and for attacks (lomma) and metrics (decoder_inversion)"
            " that need some: folder, parquet file or Hub id; default: samples of the generator (for ridge and"
            " synthetic faces: drawn faces of other people)"
        },
    )
    include_private_images: bool = field(
        default=False, metadata={"help": "Show private images next to the reconstructions on the page"}
    )
    reconstructions_only: bool = field(
        default=False, metadata={"help": "Only attack: no evaluation model, no private images, no report"}
    )

    def __post_init__(self) -> None:
        """Raise ``ValueError`` as the two it extends, or if the model is not named exactly once."""
        if (self.model is None) == (self.target is None):
            raise ValueError("pass the model under attack once: calor-hf audit MODEL, or --target MODEL")
        if self.control is not None and self.reconstructions_only:
            raise ValueError("--control compares what is recognized; leave it or --reconstructions-only out")
        AuditOptions.__post_init__(self)
        DataOptions.__post_init__(self)

    @property
    def control_folder(self) -> str:
        """Folder of the control that is trained on the way."""
        return str(Path(self.output_dir) / "control-model")

    @property
    def evaluation_folder(self) -> str:
        """Folder of the evaluation model that is trained on the way."""
        return str(Path(self.output_dir) / "evaluation-model")


def run_audit(options: AuditRecipe) -> LeakageReport | None:
    """Attack a model and write the report, its page and its Markdown version.

    Args:
        options: Options of the audit.

    Returns:
        The report; None with ``reconstructions_only``.

    Raises:
        ValueError: parts that are missing or do not fit together.
        FileExistsError: results exist, and neither ``resume`` nor ``overwrite`` is set.
        FinishingError: the attacks are done and saved, but evaluating or reporting them failed.
        FloatingPointError: scores of the target are not finite.
    """
    state = process_state()
    log_to_terminal(state.is_main_process)
    target = HFTarget.from_pretrained(str(options.model or options.target))
    options, side, folder = with_defaults(options, target), target.image_size[0], Path(options.output_dir)
    labels, evaluator, control = options.labels(target.num_classes, target.class_names), None, None
    check_apart(folder, options.dataset)
    prior: Generator[Any] = prior_of(options, target)
    if state.is_local_main_process:
        check_writable(folder)
        for place in [folder, folder / CONTROL][: 1 if options.control is None else 2]:
            for attack in options.named_attacks:
                check_begun(place / attack.name, options.resume, options.overwrite)
    with state.main_process_first():
        if not options.reconstructions_only:
            control = control_of(options, target)
            evaluation_model = evaluation_model_of(options, target)
            private = options.private_images(target, labels)
            if reads_attributes(options, private):
                options = replace(options, embedding=attribute_network(folder / ATTRIBUTES))
        if options.public_dataset is not None:
            public = load_public_images(options.public_dataset, side)
            options = replace(options, public_images=public)
            if not options.reconstructions_only:
                warn_of_private(public, private)
    if not options.reconstructions_only:
        evaluator = Evaluator(target, private, prior, labels, evaluation_model, options)
        evaluator.check_target()
        if options.control == AUTO:
            with state.main_process_first():
                control = train_control(options, target)
        if control is not None:
            evaluator.check_control(control)
    if fits_own_prior(options):
        pictures = public_images_of(options, side)
        prior = own_prior(options, target, pictures, folder / OWN_PRIOR)
        if evaluator is not None:
            evaluator.prior = prior
        if control is not None:
            own = own_prior(options, control, pictures, folder / CONTROL / OWN_PRIOR)
            options = replace(options, control_prior=own)
    found = reconstruct(target, prior, labels, options)
    if evaluator is None:
        if state.is_main_process:
            print_reconstructions(found, folder)
        return None
    from_control = attack_control(control, prior, labels, options)
    finishing = Finishing(f"the reconstructions are saved in {folder}", EVALUATE_AGAIN)
    with finishing.step("evaluating them"):
        report = evaluate(evaluator, found, options, control, from_control)
    finishing.end()
    if state.is_main_process:
        print(f"\n{summary(report)}\n\nnumbers: {folder / REPORT}")
        finishing = Finishing(f"the report is saved as {folder / REPORT}", EVALUATE_AGAIN)
        with finishing.step("writing its page"):
            shown = private if options.include_private_images else None
            page, _ = write_pages(report, folder, shown, evaluation_model, overwrite=True)
            print(f"report: {page}")
        finishing.end()
    return report


def with_defaults(options: AuditRecipe, target: HFTarget) -> AuditRecipe:
    """Fill in what depends on the target: its name, and the defaults for synthetic faces.

    Raises:
        ValueError: the private images, the evaluation model or the prior are not known.
    """
    embedded = options.dataset is None and is_embedded(target)
    synthetic = embedded and not options.reconstructions_only
    if options.dataset is None and not synthetic and not options.reconstructions_only:
        raise ValueError(
            "the target's classes are not the synthetic faces, so its private images are unknown; pass --dataset and "
            "--evaluation-model, or --reconstructions-only"
        )
    if options.evaluation_model is None and not synthetic and not options.reconstructions_only:
        dealt = options.dataset is not None and is_dealt(options.dataset)
        raise ValueError(
            "no evaluation model: train one with calor-hf train --role evaluation --model ANOTHER_ARCHITECTURE "
            f"--dataset {options.dataset}{' --label-column identities' if dealt else ''}, and pass it as "
            "--evaluation-model; or pass --reconstructions-only"
        )
    if options.generator is None and not embedded:
        raise ValueError(
            f"no prior: train one on public images of the same kind, none of the private people among them, with "
            f"{PRIOR_COMMAND}, and pass it as --generator outputs/prior; or pass --generator ridge --public-dataset "
            "PUBLIC, which fits one on the way"
        )
    if fits_own_prior(options) and options.public_dataset is None and not embedded:
        raise ValueError(
            "the generator ridge is fitted to public images of the same kind, none of the private people among them; "
            "pass them as --public-dataset"
        )
    few = min(SYNTHETIC_CLASSES, target.num_classes)
    return replace(
        options,
        generator=options.generator or RENDERER,
        target_name=str(options.model or options.target),
        budget=options.budget or (SYNTHETIC_BUDGET if synthetic else "paper"),
        classes=range(few) if synthetic and options.classes is None else options.classes,
    )


def fits_own_prior(options: AuditRecipe) -> bool:
    """Whether each attacked model gets a prior ``ridge`` of its own; a folder of that name is ``./ridge``."""
    return options.generator == OWN_PRIOR


def prior_of(options: AuditRecipe, target: Target) -> Generator[Any]:
    """The prior of the target; without its weights if it is fitted on the way."""
    if not fits_own_prior(options):
        return load_generator(str(options.generator), image_size=target.image_size[0])
    return RidgePriorTraining(RidgePriorConfig()).build(min(OWN_PRIOR_SIDE, target.image_size[0]), target)


def public_images_of(options: AuditRecipe, side: int) -> Dataset[Tensor]:
    """Public images for priors of the attacked models, which have ``side`` pixels; those of the audit if they fit."""
    if options.public_images is not None and side <= OWN_PRIOR_SIDE:
        return options.public_images
    with process_state().main_process_first():
        return load_public_images(options.public_dataset, min(OWN_PRIOR_SIDE, side))


def warn_of_private(public: PublicImages, private: PrivateImages) -> None:
    """Warn if public images are private ones, of which an attacker then needs no model."""
    if shared := len({*public.files} & {*private.files, *private.held_files}):
        logger.warning(
            "%d of the %d public images are private images of this audit: an attacker who has them has seen the "
            "people, and the audit overstates. Pass images of other people.",
            *(shared, len(public)),
        )


def own_prior(options: AuditRecipe, target: Target, images: Dataset[Tensor], folder: Path) -> Generator[Any]:
    """Fit the prior ``ridge`` to a model in one pass over the public images, or go on with that in the folder."""
    config, count, processes = RidgePriorConfig(), len(cast(Sized, images)), process_state().num_processes
    batch = max(1, min(config.batch_size, count) // processes) * processes
    training = RidgePriorTraining(replace(config, batch_size=batch, steps=max(1, min(config.steps, count // batch))))
    return train_prior(
        training, images, folder, target=target, seed=options.seed, save_steps=training.config.steps,
        resume=not options.overwrite, overwrite=options.overwrite,
    )  # fmt: skip


def reads_attributes(options: AuditRecipe, private: PrivateImages) -> bool:
    """Return whether a network reads the identity of rebuilt drawn faces; the renderer's are known exactly."""
    return private.drawn and options.generator != RENDERER and options.embedding is None


def evaluation_model_of(options: AuditRecipe, target: HFTarget) -> Network:
    """Load the evaluation model; for synthetic faces without one, train it first."""
    argv = evaluation_model_argv(options, target)
    if argv:
        print(f"training an evaluation model, once; it is kept in {options.evaluation_folder}")
        train(*parse(argv))
        torch.manual_seed(0)
    return load_network(options.evaluation_model or options.evaluation_folder)


def control_of(options: AuditRecipe, target: HFTarget) -> Target | None:
    """Load the control; None without one, and for ``auto``, of which it is only checked that it can be trained.

    Raises:
        ValueError: the target is undefended, the control does not fit, or the target's folder does not say how it was
            trained.
    """
    if options.control != AUTO:
        return load_control(target, options)
    check_defended(target)
    control_argv(options)
    return None


def train_control(options: AuditRecipe, target: HFTarget) -> Target | None:
    """Train the control unless there is a finished one, and load it."""
    if argv := control_argv(options):
        print(f"training the undefended control, once; it is kept in {options.control_folder}")
        train(*parse(argv))
        torch.manual_seed(0)
    return load_control(target, replace(options, control=options.control_folder))


def control_argv(options: AuditRecipe) -> list[str]:
    """Return options of ``calor-hf train`` for the control; empty if there is a finished one, or none is wanted."""
    folder, model = Path(options.control_folder), Path(str(options.model or options.target))
    if options.control != AUTO:
        return []
    recipe = undefended_recipe(model)
    if recipe is None:
        raise ValueError(
            f"{model} does not say how it was trained, which --control auto needs (the command in metrics.json); train "
            "an undefended model of the same base and data with calor-hf train --defense none, and pass its folder"
        )
    if not (folder / "metrics.json").is_file():
        return [*recipe, "--output-dir", str(folder), "--resume" if folder.exists() else "--overwrite"]
    if (before := undefended_recipe(folder)) != recipe:
        raise ValueError(
            f"the control in {folder} was trained with {' '.join(before or ())}, and {model} asks for "
            f"{' '.join(recipe)}; delete it, or pass another --output-dir"
        )
    return []


def undefended_recipe(model: Path) -> list[str] | None:
    """Return the options that a model was trained with, without its defense; None if its folder does not say."""
    file = model / "metrics.json"
    record = read_json(file, {"command?": list[str], "defense": str}) if file.is_file() else {}
    return undefended(record["command"], record["defense"]) if record.get("command") else None


def evaluation_model_argv(options: AuditRecipe, target: HFTarget) -> list[str]:
    """Return options of ``calor-hf train`` for the evaluation model; empty if there is a finished one."""
    folder = Path(options.evaluation_folder)
    if options.evaluation_model is not None or (folder / "metrics.json").is_file():
        return []
    words = ["--role", "evaluation", "--num-identities", str(target.num_classes), "--output-dir", str(folder)]
    return [*words, "--resume" if folder.exists() else "--overwrite"]


def print_reconstructions(found: Sequence[tuple[NamedAttack, Reconstruction]], folder: Path) -> None:
    """Print a table of attacks that were not evaluated."""
    rows = [["attack", "images", "target confidence", "target passes per image", "time, all processes"]]
    for attack, one in found:
        count, cost = len(one.labels), one.cost
        confidence, passes = f"{float(one.scores.double().mean()):.3f}", f"{cost.target_passes / count:,.0f}"
        rows.append([attack.name, str(count), confidence, passes, f"{cost.seconds:,.0f} s"])
    print(aligned(rows))
    print(f"\nreconstructions and image grids: {folder}")
    print("target confidence is the attacked model's own view, which every attack drives up: no measure of leakage")
