"""Run one attack on one target: shared by processes, saved chunk by chunk, resumed after a stop."""

import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from calor_hf._version import __version__
from calor_hf.attacks import Attack
from calor_hf.attacks.base import CHUNK_SIZE, attacked_classes
from calor_hf.auditing._store import ChunkStore, cost_of, load_reconstruction, save_reconstruction
from calor_hf.core.digests import images_digest, network_digest
from calor_hf.core.files import check_writable, delete, read_json, read_text, remove_parts, write_json, write_whole
from calor_hf.core.finishing import Finishing
from calor_hf.core.plain_text import without_paths
from calor_hf.core.processes import process_state
from calor_hf.core.progress import ClassProgress
from calor_hf.core.reconstruction import Cost, Reconstruction
from calor_hf.data.image_grid import image_grid
from calor_hf.generators import Generator
from calor_hf.targets.base import Target

logger = logging.getLogger(__name__)

RESULT, RECORD, GRID, CHUNKS = "reconstructions.safetensors", "attack.json", "grid.png", "chunks"
PREPARATION = "preparation.json"
_COMPARED = 64  # public images that a resume compares, at most


@dataclass(frozen=True)
class AttackRecord:
    """Record of a run, sufficient to repeat it.

    Attributes:
        attack: Name of the attack.
        settings: Its settings.
        generator: Name and settings of the prior.
        target: Name of the target; it identifies nothing, as the digests do.
        labels: Classes attacked.
        images_per_class: Reconstructions of each.
        seed: Seed of every draw.
        digests: SHA-256 of each part by what it is: target, its image processing, prior and public images.
        version: Version of this library.
    """

    attack: str
    settings: dict[str, Any]
    generator: dict[str, Any]
    target: str
    labels: list[int]
    images_per_class: int
    seed: int
    digests: dict[str, str]
    version: str = __version__


def run_attack(
    attack: Attack[Any],
    target: Target,
    generator: Generator[Any],
    labels: Sequence[int],
    output_dir: str | Path,
    *,
    name: str,
    target_name: str = "",
    images_per_class: int = 5,
    seed: int = 0,
    chunk_size: int = CHUNK_SIZE,
    public_images: Dataset[Tensor] | None = None,
    anonymous: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> Reconstruction:
    """Run an attack and save its reconstructions in ``output_dir``.

    Under ``accelerate launch`` every process attacks a share of the classes. Each finished chunk is a file, so a stop
    costs only the chunks in work; ``resume`` goes on with the missing classes.

    Args:
        attack: The attack.
        target: The model under attack, on this process's device.
        generator: The prior, on the same device.
        labels: Classes to attack.
        output_dir: Folder for ``reconstructions.safetensors``, ``grid.png`` (one row per class) and ``attack.json``
            (settings, cost, the target's confidence).
        name: Name of the attack, for the record.
        target_name: Name of the target, for the record.
        images_per_class: Reconstructions of each class.
        seed: Seed of every draw; the result does not depend on processes and chunks.
        chunk_size: Images at a time.
        public_images: For attacks that learn about the target first; defaults to samples of the generator.
        anonymous: Record neither the target's name nor paths, such as those of students.
        resume: Go on with the run in ``output_dir``, if there is one.
        overwrite: Delete an earlier run in ``output_dir`` first.

    Returns:
        Reconstructions of all classes, in every process. Their cost includes that of the preparation, once; the files
        have it in ``preparation.json``, not in ``reconstructions.safetensors``.

    Raises:
        ValueError: classes out of range, parts that do not fit, or a run of other settings to resume.
        FileExistsError: ``output_dir`` holds a run that is neither to be resumed nor overwritten.
        OSError: the disk is full; finished chunks are kept.
    """
    from accelerate.utils import gather_object

    if min(images_per_class, chunk_size) < 1 or seed < 0:
        raise ValueError(
            "images_per_class and chunk_size must be >= 1 and seed >= 0, got "
            f"{images_per_class}, {chunk_size} and {seed}"
        )
    generator = generator.for_classes(target.class_names)
    state, folder, labels = process_state(), Path(output_dir), [int(label) for label in labels]
    record = AttackRecord(
        name, attack.config.to_dict(), {"generator": generator.name, **generator.config.to_dict()}, target_name,
        labels, images_per_class, seed, _digests(target, generator, public_images),
    )  # fmt: skip
    if anonymous:
        record = replace(record, target="", settings=without_paths(record.settings))
    _begin(folder, record, target.num_classes, resume, overwrite)
    begin, each = time.perf_counter(), images_per_class * max(1, len(attack.parts(target, generator)))
    store = ChunkStore(folder / CHUNKS, folder / RESULT, labels, each)
    before = store.read()
    done = set(gather_object([label for part in before for label in part.labels.unique().tolist()]))
    rest = [label for label in labels if label not in done]
    mine = rest[state.process_index :: state.num_processes]
    if done and state.is_main_process:
        logger.info("%d of %d classes were finished before", len(done), len(labels))
    if rest:
        learning = attack.prepare_for(target, generator, public_images, folder, seed)
        if state.is_local_main_process and learning != Cost():
            write_json(folder / PREPARATION, asdict(learning))
    if mine:
        with ClassProgress(name, len(mine), state.is_main_process) as progress:
            share = attack.run(
                target, generator, mine, images_per_class=images_per_class, seed=seed, chunk_size=chunk_size,
                on_chunk=store.add, callback=progress,
            )  # fmt: skip
        before.append(share)
    # Nodes may not share a disk: what each process has goes to all of them.
    result = Reconstruction.join(gather_object(before))
    file = folder / PREPARATION
    preparation = cost_of(read_text(file), str(file)) if file.is_file() else Cost()
    if state.is_local_main_process:
        spent = {"processes": state.num_processes, "wall_seconds": time.perf_counter() - begin}
        _finish(folder, record, result, each, preparation, spent)
    state.wait_for_everyone()
    return replace(result, cost=result.cost + preparation)


def _digests(target: Target, generator: Generator[Any], public_images: Dataset[Tensor] | None) -> dict[str, str]:
    found = {**target.digests(), "weights of the prior": network_digest(generator)}
    if public_images is not None:
        count: int = len(public_images)  # type: ignore[arg-type]
        rows = range(0, count, max(1, count // _COMPARED))
        found["public images"] = images_digest((public_images[row] for row in rows), (f"{row}/{count}" for row in rows))
    return found


def check_begun(folder: Path, resume: bool, overwrite: bool) -> None:
    """Raise ``FileExistsError`` if ``folder`` holds an attack that is neither to be resumed nor overwritten."""
    if (folder / RECORD).is_file() and not resume and not overwrite:
        raise FileExistsError(
            f"{folder} holds an attack already; pass another output folder, resume to go on with it, or overwrite to "
            "delete it"
        )


def _begin(folder: Path, record: AttackRecord, num_classes: int, resume: bool, overwrite: bool) -> None:
    """Check the classes, and make the folder ready."""
    state, labels = process_state(), attacked_classes(record.labels, num_classes)
    if state.is_main_process:
        remove_parts(folder)
    state.wait_for_everyone()
    if state.is_local_main_process:
        if overwrite:
            own = (RESULT, RECORD, GRID, CHUNKS, PREPARATION, "students", "trapdoor.safetensors")
            delete(folder / name for name in own)
        file = folder / RECORD
        now = asdict(record)
        if file.is_file():
            check_begun(folder, resume, overwrite)
            before = read_json(file, {"labels": list[int], "digests": dict[str, str]})
            _check_same_parts(folder, before.pop("digests"), now.pop("digests"))
            now.pop("target")
            # More classes may be asked for, not fewer: what is finished stays. All else belongs to what is there.
            now["labels"] = labels if set(before["labels"]) - set(labels) else before["labels"]
            other = [k for k, v in json.loads(json.dumps(now)).items() if before.get(k) != v]
            if other:
                was, wanted = ({k: r.get(k) for k in other} for r in (before, now))
                raise ValueError(
                    f"the attack in {folder} was begun with {was}, now it is {wanted}; resume with the same"
                )
        elif (folder / CHUNKS).exists():
            raise FileExistsError(f"{folder / CHUNKS} holds chunks of an unknown attack; pass another output folder")
        check_writable(folder)
        write_json(file, asdict(record), indent=1)
    state.wait_for_everyone()


def _check_same_parts(folder: Path, before: dict[str, str], now: dict[str, str]) -> None:
    if changed := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
        raise ValueError(
            f"the attack in {folder} was begun with other {' and '.join(changed)}: its reconstructions say nothing "
            "about these; put back the files that it was begun with, overwrite it, or pass another output folder"
        )


def _finish(
    folder: Path, record: AttackRecord, result: Reconstruction, each: int, preparation: Cost, spent: dict[str, Any]
) -> None:
    save_reconstruction(result, folder / RESULT)
    finishing = Finishing(f"the reconstructions are saved in {folder / RESULT}", "resume draws them again")
    with finishing.step("drawing them"):
        write_whole(folder / GRID, image_grid(result.images, each))
    summary = {
        **asdict(record),
        "cost": {**asdict(result.cost + preparation), **spent},
        "target_confidence": float(result.scores.double().mean()),
        "images": len(result.labels),
    }
    write_json(folder / RECORD, summary, indent=1)
    shutil.rmtree(folder / CHUNKS, ignore_errors=True)
    finishing.end()


__all__ = ["AttackRecord", "load_reconstruction", "run_attack"]
