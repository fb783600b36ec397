"""One attack on a saved target, to be run in processes of its own."""

import os
import signal
from pathlib import Path
from typing import Any

import torch

from calor_hf.auditing import run_attack
from calor_hf.core.reconstruction import Reconstruction
from tests.attacks.tiny_world import ready, tiny_generator, tiny_target

LABELS = [0, 1, 2, 4]


def small_audit(folder: Path, variant: str = "plg", labels: list[int] = LABELS, **options: Any) -> Reconstruction:
    """Attack the tiny target, a class at a time."""
    target, generator = tiny_target(), tiny_generator("dcgan")
    attack = ready(variant, target, generator, folder / "prepared")
    return run_attack(
        attack, target, generator, labels, folder / "attack", name=variant, images_per_class=2, chunk_size=1, **options
    )


def main(options: dict[str, Any]) -> None:
    """Run with these options; ``kill_after`` chunks the process kills itself."""
    kill_after = options.pop("kill_after", None)
    if kill_after is not None:
        from calor_hf.auditing import _store

        keep = _store.ChunkStore.add
        kept: list[Reconstruction] = []

        def add(self: Any, found: Reconstruction) -> None:
            if len(kept) == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            kept.append(found)
            keep(self, found)

        _store.ChunkStore.add = add  # type: ignore[method-assign]
    torch.set_num_threads(1)
    small_audit(Path(options.pop("folder")), **options)
