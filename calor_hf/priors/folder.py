"""The folder of a prior: what is in it, and what of it may be deleted."""

from pathlib import Path

from calor_hf.core.files import delete

CHECKPOINT = "checkpoint.pt"
RECORD = "training.json"
SAMPLES = "samples"
LOGS = "runs"
OWN_FILES = (CHECKPOINT, RECORD, "config.json", "model.safetensors")


def refuse_used(folder: Path, resume: bool = False) -> None:
    """Raise ``FileExistsError`` for a folder that is not empty, unless the prior in it can be resumed."""
    if resume and (folder / CHECKPOINT).is_file():
        return
    others = [path for path in folder.iterdir() if not path.name.endswith(".part")] if folder.is_dir() else []
    begun = (
        resume
        and {path.name for path in others} <= {*OWN_FILES, SAMPLES, LOGS, "README.md"}
        and (folder / RECORD).is_file()
    )
    if others and not begun:  # `begun`: stopped in its first save
        raise FileExistsError(
            f"the output folder {folder} is not empty; pass another one, resume to go on with the prior in it, or "
            "overwrite to delete that"
        )


def clear(folder: Path) -> None:
    """Delete an earlier prior, and nothing else."""
    for path in [*(folder / name for name in OWN_FILES), *(folder / SAMPLES).glob("[0-9]" * 6 + ".png")]:
        path.unlink(missing_ok=True)
    delete([folder / LOGS])
