"""Faults of the plain Trainer that ours does not have; ``pytest -rP`` says which of them the installed version has."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel, Trainer, TrainingArguments

from calor_hf.training.trainer import DefenseTrainer
from tests.tiny_models import tiny_base
from tests.training.small_task import stand_still

RENAMED = ("vit", "swin", "beit", "dinov2")  # 5.x saves them under other names than in memory
UNSCALED = ("resnet", "beit", "swinv2")  # their forward takes any keyword, which the Trainer takes for "loss is scaled"


class Noise(torch.utils.data.Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 32, 32, generator=draw), "labels": index}


def trainer(kind: type[Trainer], model: PreTrainedModel, folder: Path, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 1, "learning_rate": 1e-2, "per_device_train_batch_size": 8,
        "use_cpu": True, "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False, **changes,
    }  # fmt: skip
    return kind(model=model, args=TrainingArguments(**settings), train_dataset=Noise())


def lost(kind: type[Trainer], base: str, folder: Path, best: bool) -> int:
    """Weights that ``kind`` does not restore from a checkpoint of its own."""
    torch.manual_seed(0)
    saved = tiny_base(base)
    first = trainer(kind, saved, folder)
    first.train()
    first.save_model(str(folder / "checkpoint-1"))
    torch.manual_seed(1)
    other = trainer(kind, tiny_base(base), folder)
    if best:
        other.state.best_model_checkpoint = str(folder / "checkpoint-1")
        other._load_best_model()
    else:
        other._load_from_checkpoint(str(folder / "checkpoint-1"))
    expected, found = saved.state_dict(), other.model.state_dict()
    return sum(not torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("base", [*RENAMED, "resnet", "convnext"])
def test_every_weight_of_a_checkpoint_comes_back(tmp_path: Path, base: str, best: bool) -> None:
    fault = lost(Trainer, base, tmp_path / "plain", best)
    print(f"plain Trainer of {transformers.__version__}: {fault} weights of {base} lost")  # noqa: T201
    assert lost(DefenseTrainer, base, tmp_path / "ours", best) == 0


def gradient_norm(kind: type[Trainer], base: str, folder: Path, batch: int) -> float:
    torch.manual_seed(0)
    model = tiny_base(base)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(stand_still)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    run = trainer(
        kind, model, folder, per_device_train_batch_size=batch, gradient_accumulation_steps=8 // batch,
        logging_steps=1, max_grad_norm=1e9,
    )  # fmt: skip
    run.train()
    return float(next(entry["grad_norm"] for entry in run.state.log_history if "grad_norm" in entry))


@pytest.mark.parametrize("base", [*UNSCALED, "vit"])
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path, base: str) -> None:
    plain = [gradient_norm(Trainer, base, tmp_path / f"plain-{batch}", batch) for batch in (8, 2)]
    print(f"plain Trainer of {transformers.__version__}: {base} {plain[1] / plain[0]:.2f} times too large")  # noqa: T201
    ours = [gradient_norm(DefenseTrainer, base, tmp_path / f"ours-{batch}", batch) for batch in (8, 2)]
    assert ours[1] == pytest.approx(ours[0], rel=1e-4)
