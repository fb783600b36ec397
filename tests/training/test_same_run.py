"""A resume that contradicts what a checkpoint is about is refused; more epochs go on in the right stage."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import TrainerCallback

from calor_hf import CALoRForImageClassification
from calor_hf.modeling import defend
from calor_hf.training.calor_trainer import trainer_class
from calor_hf.training.same_run import RUN, check_same_run, fingerprint
from calor_hf.training.trainer import DefenseTrainer
from tests.tiny_models import tiny_base
from tests.training.small_task import CLASSES, Patterns, arguments, config


class Seen(TrainerCallback):
    """Stage and learning rate of each step."""

    trainer: DefenseTrainer

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.rates: list[float] = []

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.stages.append(self.trainer.model.stage)
        self.rates.append(self.trainer.optimizer.param_groups[0]["lr"])


def calor(rank: int = 3, **settings: Any) -> Any:
    return CALoRForImageClassification.from_config(config("resnet"), rank=rank, **settings)


def trainer(
    folder: Path, model: Any = None, train: Any = None, validation: Any = None, **changes: Any
) -> DefenseTrainer:
    """Two epochs of two steps in each stage, unless changed."""
    model, seen = calor() if model is None else model, Seen()
    args = arguments(
        folder, **{"num_train_epochs": 2, "adapt_epochs": 2, "save_total_limit": None, "logging_steps": 2, **changes}
    )
    seen.trainer = trainer_class(model)(
        model=model, args=args, train_dataset=train or Patterns(32, 1), eval_dataset=validation or Patterns(12, 2),
        callbacks=[seen],
    )  # fmt: skip
    seen.trainer.seen = seen
    return seen.trainer


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: checkpoint 2 is within the first stage, 4 at its end, 6 within the second, 8 at the end."""
    folder = tmp_path_factory.mktemp("done")
    trainer(folder).train()
    return folder


def other_labels() -> Patterns:
    data = Patterns(32, 1)
    data.labels = data.labels.flip(0)
    return data


NAMES = {0: "Ada", **{index: f"LABEL_{index}" for index in range(1, CLASSES)}}


@pytest.mark.parametrize(
    ("step", "model", "changes", "message"),
    [
        (2, lambda: calor(rank=2), {}, "rank was 3, now it is 2"),
        (2, lambda: calor(ca_b=4.0), {}, "ca_b was 8.0, now it is 4.0"),
        (2, lambda: calor(id2label=NAMES), {}, "class 0 was 'LABEL_0', now it is 'Ada'"),
        (2, lambda: calor(num_labels=8), {}, "there were 6 classes, now there are 8"),
        (2, lambda: defend(tiny_base("resnet", CLASSES), "loft", rank=3), {}, "defense was calor, now it is loft"),
        (2, calor, {"train": Patterns(30, 1)}, "the train data had 32 samples, now 30"),
        (2, calor, {"train": other_labels()}, "the train data have other labels"),
        (2, calor, {"validation": Patterns(18, 2)}, "the validation data had 12 samples, now 18"),
        (2, calor, {"per_device_train_batch_size": 8}, "an epoch was 2 optimizer steps, now it is 4"),
        (2, calor, {"learning_rate": 0.02}, "learning_rate was 0.01, now it is 0.02"),
        (
            2,
            calor,
            {"num_train_epochs": 0.5},
            "stage 'fit' lasted from step 0 to 4, now 'fit' from 0 to 1, and step 2 is",
        ),
        (
            6,
            calor,
            {"num_train_epochs": 3},
            "stage 'fit' lasted from step 0 to 4, now 'fit' from 0 to 6, and step 6 is",
        ),
        (
            8,
            calor,
            {"adapt_epochs": 1},
            "stage 'adapt' lasted from step 4 to 8, now 'adapt' from 4 to 6, and step 8 is",
        ),
    ],
)
def test_contradiction_is_refused_in_one_line(
    step: int, model: Callable[[], Any], changes: dict[str, Any], message: str, done: Path, tmp_path: Path
) -> None:
    checkpoint = done / f"checkpoint-{step}"
    with pytest.raises(ValueError, match=message) as caught:
        trainer(tmp_path, model(), **changes).train(resume_from_checkpoint=str(checkpoint))
    said = str(caught.value)
    assert said.startswith(f"{checkpoint} belongs to another run: ")
    assert said.endswith(
        "Resume with the same, or start again in another output_dir (--output-dir), or with --overwrite"
    )
    assert "\n" not in said


@pytest.mark.parametrize(
    ("step", "changes", "stages", "rates"),
    [
        # The first stage falls linearly from 0.01 to 0 over its steps, six of them now; a tenth in the second.
        (2, {"num_train_epochs": 3}, ["fit"] * 4 + ["adapt"] * 4, [4 / 600, 3 / 600, 2 / 600, 1 / 600] + [1e-3] * 4),
        (4, {"num_train_epochs": 3}, ["fit"] * 2 + ["adapt"] * 4, [2 / 600, 1 / 600] + [1e-3] * 4),
        (6, {"adapt_epochs": 3}, ["adapt"] * 4, [1e-3] * 4),
        (8, {"adapt_epochs": 3, "adapt_learning_rate": 2e-3}, ["adapt"] * 2, [2e-3] * 2),
        (4, {}, ["adapt"] * 4, [1e-3] * 4),
    ],
)
def test_more_epochs_go_on_in_the_right_stage(
    step: int, changes: dict[str, Any], stages: list[str], rates: list[float], done: Path, tmp_path: Path
) -> None:
    shutil.copytree(done, tmp_path / "run")
    run: Any = trainer(tmp_path / "run", **changes)
    run.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
    assert run.seen.stages == stages
    assert run.seen.rates == pytest.approx(rates)
    assert run.selection().reference.step == run.plan.stages[-1].start
    assert json.loads((tmp_path / "run" / f"checkpoint-{run.plan.total_steps}" / RUN).read_text())["stages"] == [
        [stage.name, stage.start, stage.stop] for stage in run.plan.stages
    ]


def test_checkpoint_without_description_is_taken_with_a_warning(
    done: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(done, tmp_path / "run")
    (tmp_path / "run" / "checkpoint-8" / RUN).unlink()
    trainer(tmp_path / "run").train(resume_from_checkpoint=True)
    assert "does not say which run it belongs to" in caplog.text


@pytest.mark.parametrize(
    "text", ["{", '{"about": {}, "classes": [], "data": {}, "stages": [[1]], "steps_per_epoch": 2}']
)
def test_damaged_description_is_refused(text: str, done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "checkpoint-4", tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / RUN).write_text(text)
    with pytest.raises(ValueError, match=r"run\.json.* damaged"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


def test_place_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no complete checkpoint; pass the path of one, or True"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))


def pictures(*shades: int, form: str = "PNG") -> Dataset:
    """A two-sided gray image per shade."""
    found = []
    for shade in shades:
        pixels = np.full((16, 16), shade, dtype=np.uint8)
        pixels[:, :8] //= 2
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, form)
        found.append({"bytes": buffer.getvalue(), "path": None})
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    return Dataset.from_dict({"image": found, "label": [i % 2 for i in range(len(shades))]}, features=features)


def about(**data: Any) -> dict[str, Any]:
    made = {split: fingerprint(one) for split, one in data.items()}
    return {"about": {}, "classes": [], "data": made, "stages": [["fit", 0, 4]], "steps_per_epoch": 2}


def test_fingerprint_looks_at_images_and_not_at_their_encoding(tmp_path: Path) -> None:
    found = fingerprint(pictures(100, 200))
    assert found["samples"] == 2
    assert found["pictures"][0] == [50, 50, 50, 50, 50, 50, 100, 100, 100, 100, 100, 100] * 4  # RGB of 4 x 4
    (tmp_path / RUN).write_text(json.dumps(about(train=pictures(100, 200))))
    check_same_run(tmp_path, about(train=pictures(100, 200, form="JPEG")), 2)
    with pytest.raises(ValueError, match="the train data have other images"):
        check_same_run(tmp_path, about(train=pictures(100, 180)), 2)
    longer = {**about(train=pictures(100, 200)), "stages": [["fit", 0, 6]]}
    check_same_run(tmp_path, longer, 2)
    with pytest.raises(ValueError, match=r"stage 'fit' lasted from step 0 to 4, now 'fit' from 0 to 6\. Resume"):
        check_same_run(tmp_path, longer, None)  # of a phase that has ended
