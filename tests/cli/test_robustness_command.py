"""`calor-hf robustness`, and the backdoor of `calor-hf train`, as a user types them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification

from calor_hf.cli.main import main as calor_hf
from calor_hf.cli.robustness import main
from calor_hf.cli.train import main as train
from calor_hf.data.loading import load_splits
from calor_hf.recipes.robustness import attacked_images
from calor_hf.recipes.train import train as train_from_python
from calor_hf.recipes.train_arguments import parse
from calor_hf.targets.hf_target import HFTarget
from tests.tiny_models import tiny_base

IDENTITIES = 4
SMALL = ["--num-identities", str(IDENTITIES), "--num-train-epochs", "1", "--defense", "none", "--use-cpu",
         "--report-to", "none"]  # fmt: skip


def save_random_model(folder: Path, identities: int = IDENTITIES, side: int = 64) -> str:
    """An untrained model of drawn faces, with the processor that `calor-hf train` gives it."""
    torch.manual_seed(0)
    names = {index: f"identity_{index:03d}" for index in range(identities)}
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", id2label=names,
        label2id={name: index for index, name in names.items()},
    )  # fmt: skip
    ResNetForImageClassification(config).save_pretrained(folder)
    kind = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
    kind(size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_random_model(tmp_path_factory.mktemp("target"))


def test_drawn_people_need_nothing_but_the_target(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["robustness", "--target", target, "--targeted", "--max-images", "6", "--output-dir", str(tmp_path)]
    words += ["--transfer-from", target, "--backdoor", "blended", "--attacks", "fgsm", "pgd_margin", "one_pixel"]
    assert calor_hf(words) == 0
    shown = capsys.readouterr().out
    for expected in (
        "test accuracy", "n = 6", "robust accuracy, eps 1e-05",
        "pgd_margin -> y + 1", "fgsm, made elsewhere", "no proof of robustness",
        "backdoor blended", "of images of other classes than 0", "the same without the trigger",
    ):  # fmt: skip
        assert expected in shown
    numbers = json.loads((tmp_path / "robustness.json").read_text())
    assert [row["attack"] for row in numbers["adversarial"]] == 2 * (
        ["fgsm", "pgd_margin", "one_pixel", "fgsm", "pgd_margin"]  # one_pixel uses no network's gradient
    )
    assert [row["targeted"] for row in numbers["adversarial"]] == [False] * 5 + [True] * 5
    right = numbers["accuracy"]["successes"]
    robust = [(row["eps"], row["count"], row["successes"]) for row in numbers["robust_accuracy"]]
    assert [(eps, count) for eps, count, _ in robust] == [(0.0025, 6), (0.0005, 6), (0.00001, 6)]
    assert robust[0][2] <= robust[1][2] <= robust[2][2] <= right
    for row in numbers["adversarial"]:
        assert row["all"]["count"] == 6
        if not row["targeted"]:
            assert row["changed"]["count"] == right
            assert row["all"]["successes"] >= row["changed"]["successes"]
    own, moved = (next(row for row in numbers["adversarial"] if row["attack"] == "fgsm" and row["transferred"] == other)
                  for other in (False, True))  # fmt: skip
    assert own["all"]["successes"] == moved["all"]["successes"]  # the other network is the same one
    assert numbers["backdoor"]["trigger"] == {"name": "blended", "share": 0.1, "seed": 0}
    assert numbers["backdoor"]["training"] is None
    assert numbers["backdoor"]["clean"] == numbers["accuracy"]
    assert len(numbers["caveats"]) == 1
    assert calor_hf(words) == 2
    assert "holds a result already" in capsys.readouterr().err


def test_the_backdoor_of_a_training_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    words = [*SMALL, "--backdoor", "blended", "--poison-share", "0.1", "--backdoor-seed", "3"]
    result = train_from_python(*parse([*words, "--output-dir", str(folder)]))
    assert result.record["backdoor"] is not None
    recorded = json.loads((folder / "metrics.json").read_text())["backdoor"]
    assert recorded == {
        "trigger": {"name": "blended", "share": 0.1, "seed": 3},
        "poison_share": 0.1,
        "poisoned_images": 8,  # a tenth of 4 people's 20 images
        "target_class": 0,
        "seed": 3,
    }
    assert "do not publish it" in capsys.readouterr().out
    out = tmp_path / "out"
    assert main(["--target", str(folder), "--attacks", "--max-images", "8", "--output-dir", str(out)]) == 0
    numbers = json.loads((out / "robustness.json").read_text())
    assert numbers["backdoor"]["trigger"] == recorded["trigger"]  # the noise it was trained with
    assert numbers["backdoor"]["training"] == recorded
    assert numbers["adversarial"] == []


def test_poisoned_images_reach_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class StopError(Exception):
        pass

    def note(**arguments: Any) -> None:
        seen.update(arguments)
        raise StopError

    monkeypatch.setattr("calor_hf.recipes.train.trainer_class", lambda model: note)
    words = [*SMALL, "--backdoor", "badnets", "--class-weights", "balanced", "--output-dir", str(tmp_path)]
    with pytest.raises(StopError):
        train_from_python(*parse([*words, "--poison-share", "0.05"]))
    data = seen["train_dataset"]
    assert len(data.poisoned) == 4
    corner = data[int(data.poisoned[0])]["pixel_values"][:, -9:, -9:]
    assert set(corner.unique().tolist()) == {-1.0, 1.0}
    others = int((data.labels == 0).sum())
    assert float(seen["class_weights"][0]) == pytest.approx(80 / (4 * others))  # counted with the wrong labels
    assert not hasattr(seen["eval_dataset"], "poisoned")


def test_the_trigger_lies_in_what_the_network_sees(tmp_path: Path) -> None:
    """A processor that crops: images come out of it cropped, and are not resized and cropped again."""
    for label in range(2):
        for split in ("train", "test"):
            (tmp_path / "data" / split / str(label)).mkdir(parents=True)
            for index in range(3):
                image = Image.new("RGB", (50, 40), (100 * label, 10 * index, 7))
                image.save(tmp_path / "data" / split / str(label) / f"{index}.png")
    tiny_base("vit", 2).save_pretrained(tmp_path / "model")
    processor = {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 36},
        "crop_size": {"height": 32, "width": 32}, "do_center_crop": True, "do_resize": True,
    }  # fmt: skip
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(processor))
    target = HFTarget.from_pretrained(str(tmp_path / "model"))
    images, labels = attacked_images(load_splits(str(tmp_path / "data")), target, 4)
    assert images.shape == (4, 3, 32, 32)
    torch.testing.assert_close(images[3, :, 5, 5], torch.tensor([100, 20, 7]) / 255, atol=1e-5, rtol=0)
    assert labels.tolist() == [0, 0, 1, 1]
    words = ["--target", str(tmp_path / "model"), "--dataset", str(tmp_path / "data"), "--attacks", "fgsm"]
    assert (
        main(
            [*words, "--allow-duplicates-across-splits", "--backdoor", "badnets", "--output-dir", str(tmp_path / "out")]
        )
        == 0
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--attacks", "pgdd"], "unknown attack 'pgdd'"),
        (["--backdoor", "badnet"], "unknown backdoor 'badnet'"),
        (["--attacks"], "nothing to do: pass --attacks, --backdoor, or both"),
        (["--max-images", "0"], "--max-images must be >= 1, got 0"),
        (["--batch-size", "0"], "--batch-size must be >= 1, got 0"),
        (["--seed", "-1"], "--seed must be >= 0, got -1"),
        (["--target", "./nowhere"], "nowhere"),
        (["--dataset", "./nowhere"], "no folder or file ./nowhere"),
    ],
)
def test_bad_options_are_refused(
    words: list[str], message: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--target", target, "--output-dir", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_target_that_returns_nan_ends_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_random_model(tmp_path / "broken")
    model = ResNetForImageClassification.from_pretrained(folder)
    next(model.classifier.parameters()).data[0] = torch.nan
    model.save_pretrained(folder)
    assert main(["--target", folder, "--attacks", "fgsm", "--output-dir", str(tmp_path / "out")]) == 1
    assert "calor-hf robustness: the target's scores became NaN" in capsys.readouterr().err
    assert not (tmp_path / "out" / "robustness.json").exists()


def test_models_that_do_not_fit_are_refused(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_base("vit", 3).save_pretrained(tmp_path / "stranger")
    words = ["--output-dir", str(tmp_path / "out")]
    assert main(["--target", str(tmp_path / "stranger"), *words]) == 2
    assert "its data are not known; pass --dataset" in capsys.readouterr().err
    assert main(["--target", target, "--transfer-from", str(tmp_path / "stranger"), *words]) == 2
    assert "--transfer-from has 3 classes, the target 4" in capsys.readouterr().err
    small = save_random_model(tmp_path / "small", side=8)
    assert main(["--target", small, "--backdoor", "badnets", *words]) == 2
    assert "the mark takes 9 x 9 pixels, the images have 8 x 8" in capsys.readouterr().err


def test_a_missing_library_is_named_before_work(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "art", None)
    for name in [name for name in sys.modules if name.startswith("art.")]:
        monkeypatch.delitem(sys.modules, name)
    words = ["--target", target, "--output-dir", str(tmp_path), "--max-images", "2"]
    assert main(words) == 2
    assert 'pip install "calor-hf[robustness]"' in capsys.readouterr().err
    assert main([*words, "--attacks", "--backdoor", "badnets"]) == 0  # a backdoor needs no library


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backdoor", "badnet"], "--backdoor must be badnets or blended, got badnet"),
        (["--backdoor", "badnets", "--poison-share", "0"], "--poison-share must be in (0, 1], got 0"),
        (["--backdoor", "badnets", "--poison-share", "1.5"], "--poison-share must be in (0, 1], got 1.5"),
        (["--backdoor", "badnets", "--backdoor-seed", "-1"], "--backdoor-seed must be >= 0, got -1"),
        (["--backdoor", "badnets", "--push-to-hub"], "so it is not pushed"),
        (["--backdoor", "badnets", "--poison-share", "0.001"], "of 80 training images is less than one; pass more"),
    ],
)
def test_bad_backdoors_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train([*SMALL, *words, "--output-dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
