"""Options of `calor-hf train`: model, data and run; the training arguments are those of `CALoRTrainer`."""

import argparse
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import TrainingArguments

from calor_hf.core.config import setting
from calor_hf.core.config_file import option_of, value_of, with_config
from calor_hf.core.own_errors import TRACEBACK_HELP
from calor_hf.core.suggestion import did_you_mean
from calor_hf.defenses import DEFENSES
from calor_hf.defenses.low_rank import LowRankDefense
from calor_hf.recipes.common import settings_of
from calor_hf.recipes.data_options import DataOptions
from calor_hf.recipes.train_help import ADAPT, COMMON, RUN, TrainParser
from calor_hf.robustness.backdoor import TRIGGERS
from calor_hf.training.arguments import CALoRTrainingArguments


@dataclass
class ModelArguments:
    """The model to train and its defense."""

    model: str | None = setting(None, "Base model: Hub id or folder. Default: a small ResNet from random weights.")
    model_revision: str | None = setting(None, "Revision of a base model on the Hub.")
    role: str = setting(
        "release",
        "release, or evaluation: an undefended model of another architecture for audits; never release it.",
        known=("release", "evaluation"),
    )
    defense: str = setting("calor", "Name of a defense (see calor-hf list), or none for the undefended reference.")
    defense_settings: list[str] = setting(
        [],
        "Settings of the defense as name=value; each is also an option (see train --defense NAME --help).",
        metavar="NAME=VALUE",
    )
    head_init: str = setting(
        "random", "Start of the head: random, or svd of the trained classifier.", known=("random", "svd")
    )
    head: str | None = setting(None, "Path of the base model's classifier, if it cannot be found.")
    undefended_epochs: float = setting(
        0.0, "Epochs of ordinary fine-tuning before the defense (the paper's setting C: 50)."
    )
    attn_implementation: str | None = setting(None, "Attention: eager, sdpa, flash_attention_2 and others.")


@dataclass(frozen=True, kw_only=True)
class DataArguments(DataOptions):
    """The training data."""

    num_identities: int = setting(64, "Synthetic faces: number of identities.")
    public_faces: bool = setting(
        False, "Synthetic faces: other identities than the private ones, to pre-train a base model."
    )
    augmentation: str = setting("auto", "none, flip, crop_color_flip, or auto: flip up to 112 pixels, the other above.")
    class_weights: str = setting(
        "none",
        "none, or balanced: each class counts the same, whatever its number of images.",
        known=("none", "balanced"),
    )
    backdoor: str | None = setting(
        None,
        "Poison training images (relabeled to class 0) to study backdoors: badnets (a checkerboard in the lower"
        " right corner) or blended (faint noise). Never release such a model.",
        known=TRIGGERS,
    )
    poison_share: float = setting(0.01, "Share of training images with the backdoor, (0, 1].")
    backdoor_seed: int = setting(0, "Seed of the blended noise and of the choice of poisoned images.")

    @property
    def stream(self) -> str:
        """Which of the two disjoint groups of synthetic identities is drawn."""
        return "public" if self.public_faces else "private"


@dataclass
class RunArguments:
    """Handling of an earlier run in the output folder."""

    resume: bool = setting(False, "Continue from the last checkpoint in the output folder.")
    overwrite: bool = setting(False, "Delete an earlier run's files in the output folder before starting.")
    command: list[str] = field(default_factory=list, init=False)  # the options as given, for the record


AUTO_RANK = "rank=auto"
"""Measure the rank on the features of a trained model; the default of low-rank heads."""

Arguments = tuple[ModelArguments, DataArguments, RunArguments, CALoRTrainingArguments]

_DEFAULTS = {
    "output_dir": "outputs/calor", "eval_strategy": "epoch", "save_strategy": "epoch", "logging_strategy": "epoch",
    "remove_unused_columns": False, "disable_tqdm": True, "dataloader_pin_memory": torch.cuda.is_available(),
}  # fmt: skip
# A share of the steps is in a field of its own in transformers 4, and `--warmup-steps 0` would not end it.
_WARMUP = "warmup_ratio" if TrainingArguments.__dataclass_fields__["warmup_steps"].type is int else "warmup_steps"
# For the small ResNet from random weights; measured on the synthetic faces. The head starts from random weights and
# its Tanh bounds what it sees, so at the base's learning rate its scores would take twice as many epochs to grow.
_FROM_SCRATCH = {
    "num_train_epochs": 35.0, "learning_rate": 2e-3, "head_learning_rate": 6e-3, "weight_decay": 0.01,
    "lr_scheduler_type": "cosine", _WARMUP: 0.05, "per_device_train_batch_size": 32, "per_device_eval_batch_size": 256,
}  # fmt: skip
# For that ResNet on the synthetic faces, with no data of the user's. Accuracy dips first at any rate; below 6e-4 it
# comes back too slowly, at 2e-3 not at all. Real faces did not bear such a rate: there the usual tenth counts.
_SYNTHETIC = {"adapt_learning_rate": 1e-3, "max_accuracy_drop": 1.0}  # of the 320 validation images, half would be one
# Other weights and another order of the images than the target's.
_EVALUATION = {"output_dir": "outputs/evaluation-model", "seed": 7, "data_seed": 7}
# For the small RegNet; measured on the synthetic faces.
_EVALUATION_FROM_SCRATCH = {"num_train_epochs": 15.0, "learning_rate": 3e-3, "per_device_train_batch_size": 64}

_STAGE = (
    "--adapt-epochs", "--adapt-steps", "--adapt-learning-rate", "--adapt-start-epoch", "--adapt-freeze-batch-norm",
    "--adapt-only-last-layer", "--max-accuracy-drop", "--confidence-tolerance", "--accept-unadapted",
)  # fmt: skip
_SCRIPT = {
    "--do-train": "leave it out", "--do-eval": "leave it out", "--do-predict": "leave it out",
    "--resume-from-checkpoint": "pass --resume", "--overwrite-output-dir": "pass --overwrite",
}  # fmt: skip
# Options that others leave without effect.
_OVERRIDDEN = {
    "--max-steps": ("--num-train-epochs",),
    "--adapt-steps": ("--adapt-epochs",),
    "--adapt-start-epoch": ("--adapt-epochs",),
    "--dataset": ("--num-identities", "--public-faces"),
}
# Options that have an effect only with another one.
_NEEDED = {
    "--model": ("--model-revision", "--attn-implementation"),
    "--dataset": ("--dataset-revision", "--image-column", "--label-column", "--splits"),
    "--backdoor": ("--poison-share", "--backdoor-seed"),
    "--push-to-hub": ("--hub-model-id", "--hub-strategy", "--hub-token", "--hub-private-repo", "--hub-always-push",
                      "--hub-revision", "--push-unfinished", "--publish-label-names"),
}  # fmt: skip


def parse(argv: Sequence[str]) -> Arguments:
    """Read the options of `calor-hf train`.

    Every setting of the chosen defense is an option too (``--rank 8``, ``--beta 0.01``) and ends up in
    ``defense_settings``. Without ``--model`` the defaults of the optimizer are those that suit the small ResNet from
    random weights.

    Raises:
        ValueError: an option is unknown, or its value is refused.
        SystemExit: a value of another type (status 2), or ``--help``.
    """
    given_words, argv = argv, with_config(argv)
    given = _given(argv)
    defaults = dict(_DEFAULTS)
    if "--model" not in given:
        defaults |= _FROM_SCRATCH
        if "--dataset" not in given:
            defaults |= _SYNTHETIC
    if value_of(argv, "--role", "release") == "evaluation":
        defaults |= _EVALUATION | {"defense": "none"} | ({} if "--model" in given else _EVALUATION_FROM_SCRATCH)
    if "--warmup-steps" in given:
        defaults.pop(_WARMUP, None)
    defense = value_of(argv, "--defense", str(defaults.get("defense", ModelArguments.defense)))
    parser = _parser(defense)
    argv = with_config(given_words, parser)  # read again: the parser knows which options take names with values
    parser.set_defaults(**defaults)
    try:
        model, data, run, training, *own, unknown = parser.parse_args_into_dataclasses(
            list(argv), return_remaining_strings=True
        )
    except ValueError as error:  # transformers says what is wrong with a value of its arguments
        raise ValueError(str(error)) from error
    own_settings = [f"{name}={value}" for settings in own for name, value in vars(settings).items()]
    model.defense_settings = [*model.defense_settings, *own_settings]
    run.command = _without(argv, {"--resume"})  # a resumed run leaves the same record
    _check_defense(model)
    if scripts := sorted(given & _SCRIPT.keys()):
        raise ValueError(f"{scripts[0]} would have no effect in this command; {_SCRIPT[scripts[0]]}")
    if unknown:
        own_flags = [f"--{name.replace('_', '-')}" for name in setting_names(defense)]
        known = f"settings of {defense}: {', '.join(own_flags)}" if own_flags else f"{defense} has no settings"
        flags = {flag.replace("_", "-") for flag in parser._option_string_actions}
        hint = did_you_mean(unknown[0].partition("=")[0].replace("_", "-"), sorted(flags))
        raise ValueError(f"unrecognized arguments: {' '.join(unknown)} ({known}).{hint}")
    _check(model, data, run, training.push_to_hub)
    if idle := _idle(argv):
        flag, reason = next(iter(idle.items()))
        raise ValueError(f"{flag} would have no effect {reason}")
    return model, data, run, training


def undefended(argv: Sequence[str], defense: str) -> list[str]:
    """Options of an undefended reference: those of a defended training, without its defense and its output folder."""
    own = ["defense", "defense_settings", "head_init", "undefended_epochs", "output_dir", "resume", "overwrite",
           "push_to_hub", "push_unfinished", *setting_names(defense)]  # fmt: skip
    return acting(["--defense", "none", *_without(argv, {f"--{name.replace('_', '-')}" for name in own})])


def acting(argv: Sequence[str]) -> list[str]:
    """Options of `calor-hf train` without those that would have no effect, as for a stage that the defense lacks.

    For runs that share options; :func:`parse` refuses these.
    """
    return _without(argv, _idle(argv))


def _without(argv: Sequence[str], flags: Collection[str]) -> list[str]:
    kept, keeps = [], True
    for one in argv:
        if one.startswith("--"):
            keeps = _flag(one) not in flags
        kept += [one] if keeps else []
    return kept


def _flag(word: str) -> str:
    flag = option_of(word)
    return flag.replace("--no-", "--", 1) if flag.replace("--no-", "--", 1) in _STAGE else flag


def _given(argv: Sequence[str]) -> set[str]:
    return {_flag(one) for one in argv if one.startswith("--")}


def _idle(argv: Sequence[str]) -> dict[str, str]:
    """Options that would have no effect, and why."""
    given, role = _given(argv), value_of(argv, "--role", "release")
    defense = value_of(argv, "--defense", "none" if role == "evaluation" else ModelArguments.defense)
    found = dict.fromkeys(_SCRIPT, "in this command")
    for other in _OVERRIDDEN.keys() & given:
        found |= dict.fromkeys(_OVERRIDDEN[other], f"with {other}; pass one")
    for other in _NEEDED.keys() - given:
        found |= dict.fromkeys(_NEEDED[other], f"without {other}; pass both or neither")
    if defense in DEFENSES.names():
        method = DEFENSES.get(defense)
        if "adapt" not in method.stage_names:
            found |= dict.fromkeys(_STAGE, f"with {defense}, which has no stage adapt; leave it out")
        if not method(method.config_class()).own_head:
            found["--head-learning-rate"] = f"with {defense}, which has no head of its own; leave it out"
    return {flag: reason for flag, reason in found.items() if flag in given}


def setting_names(defense: str) -> list[str]:
    """Return the names of a defense's settings."""
    return [setting.name for setting in fields(DEFENSES.get(defense).config_class)]


def has_low_rank_head(defense: str) -> bool:
    """Return whether a defense's head is low-rank, as CALoR's."""
    return issubclass(DEFENSES.get(defense), LowRankDefense)


def reads_identities(defense: str) -> bool:
    """Return whether a defense trains on identities, of which the data have several per class."""
    method = DEFENSES.get(defense)
    return method(method.config_class()).identities_per_class > 0


def defenses_of_any_data() -> list[str]:
    """Return the names of the defenses that need neither data made for them nor an extra."""
    return [name for name in DEFENSES.names() if not (reads_identities(name) or DEFENSES.get(name).extra)]


def defense_settings(model: ModelArguments) -> dict[str, Any]:
    """Return the settings of the chosen defense, checked; a rank of ``auto`` is left out.

    Raises:
        ValueError: a setting that the defense does not have, has twice, or refuses.
    """
    auto = AUTO_RANK if has_low_rank_head(model.defense) else None
    settings = [one for one in model.defense_settings if one != auto]
    names = [one.partition("=")[0] for one in settings]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the setting {doubled[0]} of {model.defense} is given twice; pass it once")
    return settings_of(DEFENSES.get(model.defense).config_class, settings, f"settings of {model.defense}")


def _parser(defense: str) -> TrainParser:
    """Parser with an option for each setting of ``defense``; none for an unknown one, which is refused later."""
    own = setting_names(defense) if defense in DEFENSES.names() else []
    groups = {
        "model and defense": [one.name for one in fields(ModelArguments)],
        f"settings of the defense {defense}": own,
        "data": [one.name for one in fields(DataArguments)],
        "training (of the first stage, if there are two)": COMMON,
        "stage adapt": ADAPT,
        "run": RUN,
    }
    parser = TrainParser(
        (ModelArguments, DataArguments, RunArguments, CALoRTrainingArguments),
        groups={title: names for title, names in groups.items() if names},
        allow_abbrev=False,  # else a setting may be taken for the beginning of another option
        description="Fine-tune an image classifier with a defense; by default CALoR, in two stages: cross-entropy, then"
        " confidence adaptation.",
        epilog=TRACEBACK_HELP,
    )
    if defense in DEFENSES.names():
        taken = {action.dest for action in parser._actions}
        group = parser.add_argument_group(f"settings of the defense {defense}")
        for setting in fields(DEFENSES.get(defense).config_class):
            flags = dict.fromkeys(f"--{name}" for name in (setting.name.replace("_", "-"), setting.name))
            text = f"{setting.metadata.get('help', '')} (default: {setting.default})".replace("%", "%%")
            if setting.name not in taken:
                group.add_argument(*flags, dest=setting.name, default=argparse.SUPPRESS, help=text)
    return parser


def _check_defense(model: ModelArguments) -> None:
    try:
        DEFENSES.get(model.defense)
    except KeyError as error:
        raise ValueError(f"--defense: {error.args[0]}") from error
    defense_settings(model)


def _check(model: ModelArguments, data: DataArguments, run: RunArguments, push: bool) -> None:
    for flag, given, choices in (
        ("--role", model.role, ("release", "evaluation")),
        ("--head-init", model.head_init, ("random", "svd")),
        ("--class-weights", data.class_weights, ("none", "balanced")),
        ("--backdoor", data.backdoor, TRIGGERS),
    ):
        if given is not None and given not in choices:
            raise ValueError(f"{flag} must be {' or '.join(choices)}, got {given}")
    if model.head_init == "svd" and not has_low_rank_head(model.defense):
        raise ValueError(f"--head-init svd starts a low-rank head, and {model.defense} has none; leave it out")
    if model.head_init == "svd" and model.model is None and model.undefended_epochs == 0:
        raise ValueError("--head-init svd copies a trained classifier; pass --model, or --undefended-epochs first")
    if model.role == "evaluation" and model.defense != "none":
        raise ValueError(f"--role evaluation trains an undefended model, got --defense {model.defense}; pass one")
    if model.undefended_epochs < 0:
        raise ValueError(f"--undefended-epochs must be >= 0, got {model.undefended_epochs:g}")
    if model.undefended_epochs > 0 and model.defense == "none":
        raise ValueError("--undefended-epochs belongs to a defense; with none, use --num-train-epochs")
    if reads_identities(model.defense) and model.undefended_epochs > 0:
        raise ValueError(f"--undefended-epochs trains without identities; leave it out with {model.defense}")
    if reads_identities(model.defense) and data.backdoor is not None:
        raise ValueError(f"--backdoor relabels images, whose identities stay; leave it out with {model.defense}")
    if run.resume and run.overwrite:
        raise ValueError("--resume continues the output folder's run, --overwrite deletes it; pass one of them")
    if data.backdoor is None:
        return
    if not 0 < data.poison_share <= 1:
        raise ValueError(f"--poison-share must be in (0, 1], got {data.poison_share:g}")
    if data.backdoor_seed < 0:
        raise ValueError(f"--backdoor-seed must be >= 0, got {data.backdoor_seed}")
    if push:
        raise ValueError("--backdoor makes a model that no one should use, so it is not pushed; leave --push-to-hub")
