"""The output folder of a training run: whether it may be used, and which of its files may be deleted."""

from fnmatch import fnmatch
from pathlib import Path

from calor_hf.core.files import check_unused, check_writable, delete, remove_parts
from calor_hf.recipes.common import PREDICTIONS
from calor_hf.recipes.train_arguments import RunArguments
from calor_hf.training.arguments import CALoRTrainingArguments
from calor_hf.training.calor_trainer import FIRST_STAGE_FOLDER
from calor_hf.training.checkpoints import complete_checkpoints

UNDEFENDED_FOLDER = "undefended"
BEGUN_FILES = ("checkpoint-*", FIRST_STAGE_FOLDER, UNDEFENDED_FOLDER, "runs")
OWN_FILES = (
    *BEGUN_FILES,
    "config.json",
    "model*.safetensors*",
    "preprocessor_config.json",
    "trainer_state.json",
    "training_args.bin",
    "metrics.json",
    "curves.png",
    PREDICTIONS,
    "evidence.json",
    "reconstructions.png",
)


def prepare_folder(folder: Path, run_args: RunArguments, args: CALoRTrainingArguments) -> None:
    """Check that a folder can be used: it is empty, or its run is to be resumed or overwritten.

    Raises:
        FileExistsError: it is not empty, and neither ``resume`` nor ``overwrite`` is set.
    """
    if not args.should_save:
        return
    if run_args.overwrite:
        delete(path for pattern in OWN_FILES for path in folder.glob(pattern))
    elif run_args.resume:
        _check_resumable(folder)
        remove_parts(folder)
    else:
        check_unused(folder, "run")
    check_writable(folder)


def _check_resumable(folder: Path) -> None:
    found = [path.name for path in folder.iterdir()] if folder.exists() else []
    if complete_checkpoints(folder):
        return
    # Stopped before the first complete checkpoint: there is nothing to lose, but other files are not of this run.
    others = [name for name in found if not any(fnmatch(name, pattern) for pattern in BEGUN_FILES)]
    if others:
        raise FileExistsError(
            f"no complete checkpoint in {folder} to resume from, and there are other files ({', '.join(others[:3])}); "
            "pass another --output-dir, or --overwrite to delete an earlier run there"
        )
