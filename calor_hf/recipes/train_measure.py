"""What a training run is measured by when it is over."""

from pathlib import Path

from calor_hf.data.images import ImageDataset
from calor_hf.training.calor_trainer import FIRST_STAGE_FOLDER, CALoRTrainer
from calor_hf.training.checkpoints import load_weights
from calor_hf.training.trainer import DefenseTrainer


def measure_stages(trainer: CALoRTrainer, test: ImageDataset) -> dict[str, dict[str, float]]:
    """Metrics at the end of the first stage and of the result, whose weights the model keeps."""
    after = measure(trainer, test)
    kept = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    load_weights(trainer.model, Path(trainer.args.output_dir) / FIRST_STAGE_FOLDER)
    before = measure(trainer, test)
    trainer.model.load_state_dict(kept)
    return {"before adapting": before, "result": after}


def measure(trainer: DefenseTrainer, test: ImageDataset) -> dict[str, float]:
    """Test metrics, and the confidence of training images under ``train_confidence_correct``."""
    metrics = trainer.predict(test, metric_key_prefix="test").metrics
    kept = {name: metrics[f"test_{name}"] for name in ("accuracy", "nll", "ece", "confidence")}
    train_metrics = trainer.measure_training_images()
    return kept | {f"train_{name}": train_metrics[name] for name in ("accuracy", "confidence_correct")}


def validation_accuracy(trainer: DefenseTrainer, validation: ImageDataset) -> float:
    """Accuracy on the validation split, in [0, 1]."""
    return float(trainer.predict(validation, metric_key_prefix="validation").metrics["validation_accuracy"])
