"""Training on a CUDA device; skipped without one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from calor_hf import CALoRForImageClassification
from tests.training.small_task import DEFENSE_KINDS, STEPS, TRAINED, defense_trainer, trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32"])
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_both_stages_in_every_precision(tmp_path: Path, kind: str, precision: str) -> None:
    run = trainer(tmp_path, kind, use_cpu=False, num_train_epochs=6, **{precision: True})
    run.train()
    assert next(run.model.parameters()).device.type == "cuda"
    assert all(weight.dtype == torch.float32 for weight in run.model.parameters())
    terms = [entry for entry in run.state.log_history if "loss" in entry]
    assert terms[0]["loss"] > terms[5]["loss"]
    assert {entry["stage"] for entry in terms} == {1, 2}
    again = CALoRForImageClassification.from_pretrained(tmp_path / f"checkpoint-{9 * STEPS}").cuda().eval()
    assert all(torch.isfinite(weight).all() for weight in again.parameters())


def test_interrupted_and_resumed_goes_on_in_its_stage(tmp_path: Path) -> None:
    trainer(tmp_path, "vit", use_cpu=False, max_steps=10, adapt_steps=10, save_strategy="steps", save_steps=5).train()
    resumed = trainer(tmp_path, "vit", use_cpu=False, max_steps=10, adapt_steps=10)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-15"))
    assert resumed.state.global_step == 20


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", DEFENSE_KINDS)
@pytest.mark.parametrize("name", TRAINED)
def test_every_defense_in_half_precision(tmp_path: Path, name: str, kind: str, precision: str) -> None:
    changes: dict[str, Any] = {"use_cpu": False, "num_train_epochs": 2, precision: True}
    settings = {"eps": 0.01} if name == "at_at" else {}  # the default is below the precision of bf16
    run = defense_trainer(tmp_path, name, kind, settings=settings, **changes)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert all(torch.isfinite(torch.tensor(losses)))
    assert all(torch.isfinite(weight).all() for weight in run.model.parameters())
