"""One training for the benchmarks, in a process of its own: ``python -m benchmarks._training_run WHO OPTIONS``.

``WHO`` is plain (the Trainer of transformers), calor (both stages, half of the steps each) or private (Opacus: DP-SGD
on the plain model). Prints a JSON object on its last line; in several processes the first one does.
"""

import json
import os
import sys
import tempfile
import time
import warnings
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

from calor_hf import CALoRForImageClassification, CALoRTrainer, CALoRTrainingArguments
from calor_hf.core.peak_memory import peak_memory_bytes

CLASSES = 530


class Images(Dataset[dict[str, Any]]):
    """A few images over and over."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.images = torch.rand(32, 3, 112, 112, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index % 32], "labels": index % CLASSES}


class Clock(TrainerCallback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.begin = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start."""
        self.begin = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop."""
        self.steps.append(time.perf_counter() - self.begin)


class Timed(CALoRTrainer):
    """Two stages, and no evaluation between them: the plain Trainer has none either."""

    def is_checkpoint_step(self, step: int) -> bool:
        """Never."""
        return False

    def _load_result(self, selection: Any) -> None:
        pass


def base_model() -> ViTForImageClassification:
    """ViT-S geometry at 112 pixels."""
    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
    return ViTForImageClassification(
        ViTConfig(**size, intermediate_size=1536, image_size=112, patch_size=16, num_labels=CLASSES)
    )


def with_trainer(who: str, batch: int, steps: int, folder: str, options: dict[str, Any]) -> list[float]:
    """Seconds of each step of two epochs of ``steps``."""
    clock, data = Clock(), Images(batch * steps * int(os.environ.get("WORLD_SIZE", "1")))
    common: dict[str, Any] = {
        "output_dir": folder, "per_device_train_batch_size": batch, "use_cpu": True, "report_to": "none",
        "disable_tqdm": True, "logging_steps": 5, "save_strategy": "no", "dataloader_pin_memory": False, **options,
    }  # fmt: skip
    if who == "plain":
        args = TrainingArguments(num_train_epochs=2, **common)
        Trainer(model=base_model(), args=args, train_dataset=data, callbacks=[clock]).train()
    else:
        args = CALoRTrainingArguments(num_train_epochs=1, adapt_epochs=1, **common)
        model = CALoRForImageClassification.from_base(base_model(), rank=32)
        Timed(model=model, args=args, train_dataset=data, eval_dataset=data, callbacks=[clock]).train()
    return clock.steps


def with_opacus(batch: int, steps: int) -> list[float]:
    """Seconds of each step of DP-SGD; noise 1, gradients clipped to norm 1 per image."""
    from opacus import PrivacyEngine

    model = base_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model, optimizer, _ = PrivacyEngine().make_private(
        module=model, optimizer=optimizer, data_loader=DataLoader(Images(batch * steps), batch_size=batch),
        noise_multiplier=1.0, max_grad_norm=1.0, poisson_sampling=False,
    )  # fmt: skip
    seconds = []
    for _ in range(2):
        for inputs in DataLoader(Images(batch * steps), batch_size=batch):
            begin = time.perf_counter()
            optimizer.zero_grad()
            scores = model(pixel_values=inputs["pixel_values"]).logits
            torch.nn.functional.cross_entropy(scores, inputs["labels"]).backward()
            optimizer.step()
            seconds.append(time.perf_counter() - begin)
    return seconds


def main() -> None:
    """Run what the command line says."""
    warnings.simplefilter("ignore")
    who, options = sys.argv[1], json.loads(sys.argv[2])
    batch, steps = options.pop("batch", 32), options.pop("steps", 5)
    with tempfile.TemporaryDirectory() as folder:
        seconds = with_opacus(batch, steps) if who == "private" else with_trainer(who, batch, steps, folder, options)
    times = sorted(seconds[1:])  # the first step allocates, or compiles
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({"images_per_second": batch / times[len(times) // 2], "peak_bytes": peak_memory_bytes()}))


if __name__ == "__main__":
    main()
