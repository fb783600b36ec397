import copy
from pathlib import Path

import torch
from transformers import ResNetConfig

from calor_hf import CALoRForImageClassification, CALoRTrainer, CALoRTrainingArguments
from calor_hf.training.estimate import estimate_seconds


def seconds(folder: Path, epochs: int) -> float:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=3)
    model = CALoRForImageClassification.from_config(config, rank=1)
    data = [{"pixel_values": torch.rand(3, 64, 64), "labels": i % 3} for i in range(30)]
    args = CALoRTrainingArguments(
        output_dir=str(folder), num_train_epochs=epochs, adapt_epochs=epochs, use_cpu=True, report_to="none"
    )
    trainer = CALoRTrainer(model=model, args=args, train_dataset=data, eval_dataset=data)
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = estimate_seconds(trainer)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    return found


def test_estimate_changes_nothing_and_grows_with_the_epochs(tmp_path: Path) -> None:
    # A hundred times the epochs: more, whatever else this machine does.
    assert 0 < seconds(tmp_path, 1) < seconds(tmp_path, 100)
