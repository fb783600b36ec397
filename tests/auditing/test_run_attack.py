"""Attacks that are kept: shared by processes, killed and resumed, refused, out of room."""

import errno
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

from calor_hf import __version__
from calor_hf.attacks import GradientAttack
from calor_hf.auditing import load_reconstruction, run_attack
from calor_hf.core.reconstruction import Cost, Reconstruction
from calor_hf.targets.hf_target import HFTarget
from tests.attacks.tiny_world import SIDE, ready, tiny_generator, tiny_target
from tests.auditing.small_audit import LABELS, small_audit
from tests.processes.server import Server

TASK = "tests.auditing.small_audit"


def assert_same(a: Reconstruction, b: Reconstruction) -> None:
    assert torch.equal(a.labels, b.labels)
    assert torch.allclose(a.images, b.images, rtol=0, atol=1e-8)
    assert torch.allclose(a.latents, b.latents, rtol=0, atol=1e-8)


def test_what_is_kept(tmp_path: Path) -> None:
    found = small_audit(tmp_path)
    folder = tmp_path / "attack"
    assert sorted(path.name for path in folder.iterdir()) == ["attack.json", "grid.png", "reconstructions.safetensors"]
    read = load_reconstruction(folder / "reconstructions.safetensors")
    assert_same(read, found)
    assert torch.equal(read.scores, found.scores)
    assert read.cost == found.cost
    record = json.loads((folder / "attack.json").read_text())
    assert record["version"] == __version__
    assert (record["attack"], record["seed"], record["labels"], record["images"]) == ("plg", 0, LABELS, 8)
    assert record["settings"]["steps"] == 8
    assert record["generator"]["generator"] == "dcgan"
    assert record["cost"]["target_passes"] == 8 * (8 * 2 + 1)
    assert record["target_confidence"] == pytest.approx(float(found.scores.mean()))
    with Image.open(folder / "grid.png") as grid:
        assert grid.size == (2 * (SIDE + 2) - 2, 4 * (SIDE + 2) - 2)  # one row per class


@pytest.mark.parametrize(
    "variant",
    ["gmi", pytest.param("ked", marks=pytest.mark.slow), pytest.param("plg", marks=pytest.mark.slow), "lomma"],
)
def test_killed_and_resumed_loses_nothing_finished(
    tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    whole = small_audit(tmp_path / "whole", variant)
    options = {"folder": str(tmp_path / "killed"), "variant": variant}
    killed = server.task(TASK, {**options, "kill_after": 2})
    assert killed.status == -signal.SIGKILL, killed.shown[-3000:]
    chunks = sorted((tmp_path / "killed" / "attack" / "chunks").iterdir())
    assert [path.name for path in chunks] == ["000000.safetensors", "000001.safetensors"]
    asked: list[list[int]] = []
    run = GradientAttack.attack

    def note(self: Any, target: Any, generator: Any, labels: Any, task: Any) -> Reconstruction:
        asked.append(list(labels))
        return run(self, target, generator, labels, task)

    monkeypatch.setattr(GradientAttack, "attack", note)
    assert_same(small_audit(tmp_path / "killed", variant, resume=True), whole)
    assert asked == [[2], [4]]  # finished classes are not done again


def test_two_processes_give_what_one_gives(tmp_path: Path, server: Server) -> None:
    whole = small_audit(tmp_path / "one")
    done = server.task(TASK, {"folder": str(tmp_path / "two")}, processes=2, ACCELERATE_USE_CPU="true")
    assert done.status == 0, done.shown[-3000:]
    both = load_reconstruction(tmp_path / "two" / "attack" / "reconstructions.safetensors")
    assert_same(both, whole)
    assert both.cost.target_passes == whole.cost.target_passes
    record = json.loads((tmp_path / "two" / "attack" / "attack.json").read_text())
    assert record["cost"]["processes"] == 2  # not two that did all of it, each for itself


def test_a_finished_run_is_read_and_can_be_widened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = small_audit(tmp_path, labels=[0, 2])
    wide = small_audit(tmp_path, labels=[0, 2, 3], resume=True)
    assert wide.labels.unique().tolist() == [0, 2, 3]
    assert_same(_of(wide, [0, 2]), first)
    from calor_hf.attacks.plg import PLG

    monkeypatch.setattr(PLG, "identity", None)  # nothing is attacked again
    assert_same(small_audit(tmp_path, labels=[0, 2, 3], resume=True), wide)
    with pytest.raises(ValueError, match="resume with the same"):
        small_audit(tmp_path, labels=[0], resume=True)


def _of(found: Reconstruction, labels: list[int]) -> Reconstruction:
    rows = torch.isin(found.labels, torch.tensor(labels))
    return Reconstruction(found.images[rows], found.labels[rows], found.latents[rows], found.scores[rows], found.cost)


def test_a_used_folder_is_refused_unless_overwriting(tmp_path: Path) -> None:
    small_audit(tmp_path, labels=[0])
    (tmp_path / "attack" / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="holds an attack already"):
        small_audit(tmp_path, labels=[0])
    with pytest.raises(ValueError, match=r"begun with \{'seed': 0\}, now it is \{'seed': 1\}"):
        small_audit(tmp_path, labels=[0], seed=1, resume=True)
    found = small_audit(tmp_path, labels=[1], overwrite=True)
    assert found.labels.tolist() == [1, 1]
    assert (tmp_path / "attack" / "thesis.tex").read_text() == "mine"


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small_audit(tmp_path / "whole")
    sync, left = os.fsync, [3]

    def full(number: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=r"000002\.safetensors .*No space left.*; what was finished before is kept: make room"
    ):
        small_audit(tmp_path)
    kept = sorted(path.name for path in (tmp_path / "attack" / "chunks").iterdir())
    assert kept == ["000000.safetensors", "000001.safetensors"]  # the third write was the record's
    monkeypatch.setattr(os, "fsync", sync)
    assert_same(small_audit(tmp_path, resume=True), whole)


def test_half_a_chunk_is_not_taken(tmp_path: Path) -> None:
    """A chunk with fewer images per class than asked for, as of another run, is not mixed in."""
    from calor_hf.auditing._store import ChunkStore, save_reconstruction

    store = ChunkStore(tmp_path / "chunks", tmp_path / "none", [1, 2], 2)
    images, latents = torch.rand(3, 3, 4, 4), torch.rand(3, 2)
    store.add(Reconstruction(images, torch.tensor([1, 1, 2]), latents, torch.rand(3), Cost()))
    (found,) = store.read()
    assert found.labels.tolist() == [1, 1]
    assert replace(store, labels=[2]).read() == []
    save_reconstruction(found, tmp_path / "a.safetensors")
    torch.save({}, tmp_path / "b")
    from safetensors.torch import save_file

    save_file({"images": images}, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="labels, latents, scores missing"):
        load_reconstruction(tmp_path / "c.safetensors")


def test_a_run_of_other_parts_is_not_resumed(tmp_path: Path) -> None:
    def run(**changes: Any) -> None:
        parts: dict[str, Any] = {"target": tiny_target(), "generator": tiny_generator("dcgan")} | changes
        attack = ready("plg", parts["target"], parts["generator"], tmp_path / "prepared")
        run_attack(attack, **parts, labels=[0], output_dir=tmp_path / "attack", name="plg", resume=True)

    run()
    other, prior = tiny_target(), tiny_generator("dcgan")
    with torch.no_grad():
        for module in (other.module, prior):
            next(module.parameters()).mul_(1.01)
    processed = HFTarget(tiny_target().module, ViTImageProcessor(size={"height": SIDE, "width": SIDE}))
    images = torch.rand(3, 3, SIDE, SIDE)
    for changes, name in (
        ({"target": other}, "weights of the target"),
        ({"target": processed}, "image processing of the target"),
        ({"generator": prior}, "weights of the prior"),
        ({"public_images": images}, "public images"),
    ):
        with pytest.raises(ValueError, match=f"was begun with other {name}: "):
            run(**changes)
    run()
