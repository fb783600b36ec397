"""The command a user types: real runs on a few drawn people."""

import json
import re
from pathlib import Path

import accelerate
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageClassification,
    PreTrainedModel,
    RegNetForImageClassification,
    ResNetForImageClassification,
    pipeline,
)

from calor_hf import CALoRForImageClassification, DefendedForImageClassification
from calor_hf.auditing.networks import load_network
from calor_hf.cli.main import main as calor_hf
from calor_hf.cli.train import main
from calor_hf.core.fingerprints import trained_on
from calor_hf.recipes.data_options import DataOptions
from calor_hf.recipes.train import load_parts, train
from calor_hf.recipes.train_arguments import acting, defense_settings, parse
from calor_hf.targets.hf_target import HFTarget
from tests.processes.server import Server

SMALL = [
    "--num-identities", "4", "--num-train-epochs", "2", "--adapt-epochs", "2", "--max-accuracy-drop", "100",
    "--confidence-tolerance", "1e-9", "--use-cpu", "--report-to", "none", "--warmup-steps", "0",
]  # fmt: skip


@pytest.mark.usefixtures("whole_run")
def test_default_run_saves_all_that_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    assert main([*SMALL, "--output-dir", str(folder), "--report-to", "tensorboard"]) == 0
    shown = capsys.readouterr().out
    for expected in ("minutes of training at most", "adapt stage begins", "test accuracy", "target 0.8825", "Load it:"):
        assert expected in shown
    numbers = json.loads((folder / "metrics.json").read_text())
    assert numbers["settings"]["rank"] == numbers["head"]["head_rank"] == 1
    assert numbers["peak_memory_bytes"] > 2**20
    assert 0 <= numbers["measured"]["result"]["validation_accuracy"] <= 1
    assert (numbers["images"], numbers["split"]) == (40, "test")
    assert list(numbers["measured"]) == ["before adapting", "result"]
    with Image.open(folder / "curves.png") as curves:
        assert curves.width > 500
    assert list((folder / "runs").rglob("events.out.tfevents*"))
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert isinstance(model, CALoRForImageClassification)
    classify = pipeline("image-classification", model=str(folder))
    answers = classify(Image.new("RGB", (64, 64)))
    assert {answer["label"] for answer in answers} <= {f"identity_{i:03d}" for i in range(4)}


def test_a_used_folder_is_refused_unless_overwriting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "checkpoint-999").mkdir()
    assert main([*SMALL, "--output-dir", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "checkpoint-999").exists()
    assert main(acting([*SMALL, "--defense", "none", "--output-dir", str(tmp_path), "--overwrite"])) == 0
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    assert not (tmp_path / "checkpoint-999").exists()
    ResNetForImageClassification.from_pretrained(tmp_path)


def test_setting_c_starts_from_an_ordinary_fine_tune(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    words = [*SMALL, "--undefended-epochs", "2", "--head-init", "svd", "--output-dir", str(folder)]
    result = train(*parse(words))
    assert list(result.record["measured"]) == ["undefended", "before adapting", "result"]
    assert isinstance(ResNetForImageClassification.from_pretrained(folder / "undefended"), PreTrainedModel)
    assert 1 <= result.model.config.rank <= 4  # suggested from the fine-tuned features


def test_a_base_model_in_a_folder_and_an_image_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    from calor_hf import load_synthetic_faces

    for row in load_synthetic_faces(3, 8, image_size=32):
        person = tmp_path / "faces" / f"person {row['label']}"
        person.mkdir(parents=True, exist_ok=True)
        row["image"].save(person / f"{len(list(person.iterdir()))}.png")
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        num_labels=7,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path / "base")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(processor))
    words = [
        *SMALL, "--model", str(tmp_path / "base"), "--dataset", str(tmp_path / "faces"), "--class-weights",
        "balanced", "--output-dir", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main(acting(words)) == 0
    model = CALoRForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.base_class == "ViTForImageClassification"
    assert f"the model in {tmp_path / 'base'} looks untrained" in capsys.readouterr().out
    assert model.config.rank == 1  # nothing was measured: rank 2 would have been the least
    assert model.config.id2label == {0: "person 0", 1: "person 1", 2: "person 2"}
    # Audits see whether this model was trained on the images that test it there, as with another share held out.
    network, target = load_network(str(tmp_path / "out")), HFTarget.from_pretrained(str(tmp_path / "out"))
    for held_out, some in ((0.1, False), (0.4, True)):
        private = DataOptions(dataset=str(tmp_path / "faces"), held_out=held_out).private_images(target, [0, 1, 2])
        assert len(private.held_files) == (9 if some else 3)
        assert trained_on(Path(str(network.folder)), private.files) > 0
        assert (trained_on(Path(str(network.folder)), private.held_files) > 0) == some


def test_another_defense_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--defense", "mid", "--defense-settings", "beta=0.003", "sample_at_eval=false"]
    assert main(acting([*SMALL, *words, "--output-dir", str(tmp_path)])) == 0
    assert "DefendedForImageClassification.from_pretrained" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert (numbers["defense"], numbers["settings"]) == ("mid", {"beta": 0.003, "sample_at_eval": False})
    assert list(numbers["measured"]) == ["mid"]
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert isinstance(model, DefendedForImageClassification)
    assert model.config.id2label[0] == "identity_000"


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["--defense", "mid", "--beta", "0.003", "--sample_at_eval=false"], {"beta": 0.003, "sample_at_eval": False}),
        (["--defense=loft", "--rank", "4", "--input-norm", "batchnorm"], {"rank": 4, "input_norm": "batchnorm"}),
        (["--rank", "auto", "--activation", "relu"], {"activation": "relu"}),
        (["--defense", "label_smoothing", "--alpha", "-0.1"], {"alpha": -0.1}),
        (["--defense", "trap_mid", "--weight", "0.3", "--weight-decay", "0.1"], {"weight": 0.3}),
    ],
)
def test_settings_of_the_defense_are_options(words: list[str], settings: dict[str, object]) -> None:
    assert defense_settings(parse(words)[0]) == settings


def test_help_shows_the_settings_of_the_defense(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--defense", "bido", "--help"])
    assert "--lambda-in" in capsys.readouterr().out


def test_an_evaluation_model_is_undefended_and_of_another_architecture(tmp_path: Path) -> None:
    words = ["--role", "evaluation", *SMALL, "--num-train-epochs", "1", "--output-dir", str(tmp_path)]
    assert main(acting(words)) == 0
    assert isinstance(AutoModelForImageClassification.from_pretrained(tmp_path), RegNetForImageClassification)
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert numbers["defense"] == "none"
    assert numbers["seed"] != parse(SMALL)[3].seed
    assert parse(["--role=evaluation"])[3].output_dir == "outputs/evaluation-model"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--role", "juror"], "--role must be release or evaluation, got juror"),
        (
            ["--role", "evaluation", "--defense", "mid"],
            "--role evaluation trains an undefended model, got --defense mid",
        ),
        (["--rank", "many"], "rank must be int or none, got 'many'"),
        (["--defense", "magic"], "--defense: unknown defense 'magic'. Known: at_at, bido, calor"),
        (["--defense", "midd"], "Did you mean 'mid'?"),
        (["--defense", "mid", "--defense-settings", "betta=1"], "has no setting betta (did you mean beta?)"),
        (["--defense", "mid", "--defense-settings", "beta"], "expected a setting as name=value, got 'beta'"),
        (["--defense", "mid", "--defense-settings", "beta=much"], "beta must be float, got 'much'"),
        (["--defense", "mid", "--defense-settings", "beta=-1"], "beta must be >= 0, got -1.0"),
        (["--defense", "mid", "--beta", "-1"], "beta must be >= 0, got -1.0"),
        (
            ["--defense", "mid", "--rank", "3"],
            "arguments: --rank 3 (settings of mid: --beta, --sample-at-eval)",
        ),
        (["--defense", "none", "--beta", "3"], "unrecognized arguments: --beta 3 (none has no settings)"),
        (["--undefended_epoch", "3"], "Did you mean '--undefended-epochs'?"),
        (["--learning-rat=3"], "Did you mean '--learning-rate'?"),
        (["--defense", "mid", "--betta", "3"], "Did you mean '--beta'?"),
        (
            ["--defense", "loft", "--rank", "3", "--defense-settings", "rank=3"],
            "setting rank of loft is given twice",
        ),
        (["--defense", "mid", "--head-init", "svd"], "--head-init svd starts a low-rank head, and mid has none"),
        (["--head-init", "svd"], "pass --model, or --undefended-epochs first"),
        (["--resume", "--overwrite"], "pass one of them"),
        (["--class-weights", "heavy"], "must be none or balanced"),
        (["--head-init", "svdd"], "--head-init must be random or svd, got svdd"),
        (["--ca-b", "0"], "b must be a positive finite number"),
        (["--dataset", "./nowhere"], "no folder or file ./nowhere"),
        (["--model", "no one/nothing"], "pass a folder that holds config.json"),
        (["--rank", "9"], "rank must be a whole number between 1 and 4"),
        (["--rank", "9", "--undefended-epochs", "1"], "rank must be a whole number between 1 and 4"),
        (["--activation", "relu", "--head-init", "svd", "--undefended-epochs", "1"], "straight around zero"),
        (["--ca-b", "0.7", "--undefended-epochs", "1"], "theirs lies between 0.25 and 1; pass a ca_b above 0.7213"),
        (["--defense", "at_at", "--bf16", "true", "--undefended-epochs", "1"], "rounds away"),
        (["--defense", "temperature", "--ca-b", "1e17"], "target confidence e^(-1/b) = 1, which"),
        (["--rank", "0"], "rank must be a whole number >= 1, got 0"),
        (["--ca-a", "0"], "a must be a positive finite number, got 0"),
        (["--ca-b", "inf"], "ca_b must be a number, got inf"),
        (["--head", "fc"], "has no module 'fc'; its last linear layers"),
        (["--dataset", "no one/nothing"], "pass the path of an image folder or parquet file"),
        (["--on-bad-image", "hide"], "--on-bad-image must be raise or skip, got hide"),
        (["--activation", "gelu"], "unknown activation 'gelu'"),
        (["--augmentation", "mirror"], "unknown augmentation 'mirror'"),
    ],
)
def test_bad_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(acting([*SMALL, "--output-dir", str(tmp_path / "out"), *words])) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "minutes of training" not in captured.out  # nothing was trained before


def test_identical_images_in_two_splits_are_refused_unless_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faces = tmp_path / "faces"
    for split, person, red in (("train", "ada", 0), ("train", "alan", 9), ("test", "ada", 0), ("test", "alan", 9)):
        (faces / split / person).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (8, 8), (red, index, 0)).save(faces / split / person / f"{index}.png")
    words = acting([*SMALL, "--dataset", str(faces), "--output-dir", str(tmp_path / "out")])
    assert main(words) == 2
    captured = capsys.readouterr()
    assert "--allow-duplicates-across-splits" in captured.err
    assert "12 files found" in captured.out
    model_args, data_args, _, args = parse([*words, "--allow-duplicates-across-splits"])
    _, data, _ = load_parts(model_args, data_args, args)
    assert len(data["test"]) == 6


def test_losing_accuracy_ends_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--rank", "3", "--num-train-epochs", "8", "--max-accuracy-drop", "0", "--adapt-learning-rate", "0.1"]
    assert main(acting([*SMALL, *words, "--output-dir", str(tmp_path / "out")])) == 1
    assert "--accept-unadapted" in capsys.readouterr().err


def test_loss_that_is_not_finite_ends_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--rank", "3", "--num-train-epochs", "8", "--adapt-learning-rate", "1e9"]
    assert main(acting([*SMALL, *words, "--output-dir", str(tmp_path / "out")])) == 1
    error = capsys.readouterr().err
    assert "the loss is not finite at step" in error
    assert "the last good checkpoint is" in error


def test_svd_of_a_classifier_with_other_classes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _tiny_resnet(tmp_path)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    words = ["--model", str(folder), "--head-init", "svd", "--output-dir", str(tmp_path / "out")]
    assert main(acting([*SMALL, *words])) == 2
    assert "has 2 classes, but the data have 4" in capsys.readouterr().err


def test_ctrl_c_in_the_adapt_stage_and_resume(tmp_path: Path, server: Server) -> None:
    command = ["train", *SMALL, "--output-dir"]
    assert server.together([*command, str(tmp_path / "whole")]).status == 0
    halves = [*command, str(tmp_path / "halves")]
    # The first epoch of the adapt stage is over.
    stopped = server.interrupt(halves, tmp_path, lambda shown: "\nadapt " in shown)
    assert stopped.status == 130
    assert "stopped in stage 'adapt'" in stopped.shown
    resumed = server.together([*halves, "--resume"])
    assert resumed.status == 0, resumed.shown
    assert "fit    epoch" not in resumed.shown
    if transformers.__version__.startswith("4.") and Version(accelerate.__version__) < Version("1.15"):
        pytest.skip("within an epoch these go on with the augmentations of the first one")
    left = load_file(tmp_path / "whole" / "model.safetensors")
    right = load_file(tmp_path / "halves" / "model.safetensors")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_the_command_lists_helps_and_suggests(capsys: pytest.CaptureFixture[str]) -> None:
    assert calor_hf(["--help"]) == 0
    assert "train" in capsys.readouterr().out
    assert calor_hf(["list"]) == 0
    shown = capsys.readouterr().out
    assert "calor" in shown
    assert "none" in shown
    assert calor_hf(["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err
    assert calor_hf(["--version"]) == 0


def _tiny_resnet(folder: Path) -> Path:
    from transformers import ResNetConfig

    config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=2)
    ResNetForImageClassification(config).save_pretrained(folder / "resnet")
    return folder / "resnet"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--do_train"], "--do-train would have no effect in this command; leave it out"),
        (["--resume_from_checkpoint", "x"], "no effect in this command; pass --resume"),
        (["--overwrite-output-dir"], "no effect in this command; pass --overwrite"),
        (["--max-steps", "3", "--num_train_epochs", "2"], "--num-train-epochs would have no effect with --max-steps"),
        (["--adapt-steps=3", "--adapt-epochs=2"], "--adapt-epochs would have no effect with --adapt-steps; pass one"),
        (["--dataset", "x", "--num-identities", "3"], "--num-identities would have no effect with --dataset"),
        (["--model-revision", "v1"], "--model-revision would have no effect without --model; pass both or neither"),
        (["--label-column", "person"], "--label-column would have no effect without --dataset"),
        (["--poison-share", "0.1"], "--poison-share would have no effect without --backdoor"),
        (["--hub-model-id", "me/x"], "--hub-model-id would have no effect without --push-to-hub"),
        (["--defense", "bido", "--adapt-epochs", "2"], "no effect with bido, which has no stage adapt; leave it out"),
        (
            ["--defense=none", "--no_adapt_freeze_batch_norm"],
            "--adapt-freeze-batch-norm would have no effect",
        ),
        (["--role", "evaluation", "--accept-unadapted"], "--accept-unadapted would have no effect with none"),
        (["--defense", "bido", "--head-learning-rate", "1"], "no effect with bido, which has no head of its own"),
    ],
)
def test_an_option_without_effect_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(words)
    parse([*acting([*words, "--use-cpu"]), "--report-to", "none"])


def test_runs_share_options_and_leave_out_those_without_effect() -> None:
    words = ["--adapt-epochs", "2", "--seed", "3", "--adapt_only_last_layer", "--defense"]
    assert acting([*words, "calor"]) == [*words, "calor"]
    assert acting([*words, "bido"]) == ["--seed", "3", "--defense", "bido"]
