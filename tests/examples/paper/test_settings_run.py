"""Each of the paper's settings starts, trains, saves and audits, on made-up images in the layout of `prepare`.

Shrunk are networks, priors, attacks, checks of power, the epochs (a tenth), the batch (2), ranks (at most 2) and the
number of images; all other options are those of the setting. Each model takes some tens of steps.
"""

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from calor_hf.auditing import power
from calor_hf.auditing.evaluation import Evaluator
from calor_hf.core.files import read_json
from calor_hf.priors import PRIORS
from calor_hf.recipes.report import INCONCLUSIVE
from examples.paper.__main__ import main as paper
from examples.paper.commands import settings
from examples.paper.configuration_ir import IRConfig
from examples.paper.modeling_ir import IRForImageClassification
from tests.data.made_up_sets import make_celeba, save
from tests.examples.paper.test_settings import FOLDER, NAMES
from tests.tiny_models import EVERY

SMALL_PRIOR = {
    "steps": 2,
    "discriminator_steps": 1,
    "batch_size": 4,
    "width": 8,
    "max_channels": 16,
    "top": 4,
}
AUDITED = ("calor", "rank_10", "calor_badnets")
"""Models that are audited; the others are trained and saved."""


def small_model(name: str) -> tuple[PreTrainedModel, int]:
    """Tiny network of the kind that a setting starts from, and the side of its images."""
    if "ir" in name:
        side = int(name.rsplit("-", 1)[1])
        config = IRConfig(depths=(2, 1), hidden_sizes=(8, 16), image_size=side, embedding_size=12)
        return IRForImageClassification(config), side
    kinds = {"resnet": "ResNet", "swinv2": "Swinv2", "vit-b16": "ViT", "maxvit": "ConvNext"}  # the last needs timm
    kind = next(kind for part, kind in kinds.items() if part in name)
    config_name, values = EVERY[f"{kind}ForImageClassification"]
    sizes = {"image_size": 224, "patch_size": 32} if kind in ("Swinv2", "ViT") else {}
    config = getattr(transformers, config_name)(**{**values, **sizes})
    return getattr(transformers, f"{kind}ForImageClassification")(config), 224


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the prepared images and base models of all settings."""
    folder, raw = tmp_path_factory.mktemp("paper"), tmp_path_factory.mktemp("raw")
    make_celeba(raw / "celeba", [3, 7, 7, 3, 5, 5, 3, 7, 5, 3, 7, 5])
    for number in range(12):  # no image is there twice
        group = "actors" if number < 8 else "actresses"
        save(raw / "facescrub" / group / "faces" / f"Al {number // 4}" / f"{number}.jpeg", number, (90, 120))
        part = "val" if number % 4 == 3 else "train"
        save(raw / "imagenette" / part / f"n0{number // 4}" / f"{number}.JPEG", number, (200, 160))
        save(raw / "ffhq" / "images1024x1024" / "00000" / f"{number:05d}.png", number, (336, 336))
    for name, side in [*((name, side) for name in ("facescrub", "celeba") for side in (64, 224)), ("imagenette", 224),
                       ("ffhq", 64), ("ffhq", 256)]:  # fmt: skip
        words = ["--source", str(raw / name), "--output-dir", str(folder / "data" / f"{name}-{side}")]
        assert paper(["prepare", name, *words, "--image-size", str(side)]) == 0
    starts = [setting(name)[part].get("model") for name in NAMES for part in ("train", "evaluation_model")]
    torch.manual_seed(0)
    for start in filter(None, dict.fromkeys(starts)):
        model, side = small_model(start)
        model.save_pretrained(folder / start)
        kind = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
        kind(size={"height": side, "width": side}).save_pretrained(folder / start)
    return folder


def setting(name: str) -> dict[str, Any]:
    return settings.load(FOLDER / f"{name}.yaml")


def shrunk(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a training with a tenth of its epochs."""
    found = dict(options)
    for name in ("num-train-epochs", "undefended-epochs"):
        if name in found:
            found[name] /= 10
    if "lr-drop-epochs" in found:
        found["lr-drop-epochs"] = [epoch / 10 for epoch in found["lr-drop-epochs"]]
    if "rank" in found:
        found["rank"] = min(found["rank"], 2)
    if found.get("defense") == "calor":
        found |= {"adapt-epochs": 2, "max-accuracy-drop": 100}
    if "backdoor" in found:
        found["poison-share"] = 0.5  # of four images
    return found


def small(name: str) -> dict[str, Any]:
    """Setting with less of everything that takes long."""
    one = setting(name)
    few = {"per-device-train-batch-size": 2, "use-cpu": True, "report-to": "none"}
    for part in ("train", "evaluation_model"):
        one[part] = shrunk(one[part]) | few
    one["models"] = {model: shrunk(options) for model, options in one["models"].items()}
    for prior in one["priors"].values():
        known = {field.name for field in fields(PRIORS.get(prior["prior"]).config_class)}
        prior["settings"] = [f"{key}={value}" for key, value in SMALL_PRIOR.items() if key in known]
    one["audit"] |= {"classes": "0-1", "images-per-class": 1, "budget": 0.005}
    if one.get("robustness"):
        one["robustness"] |= {"max-images": 2}
    return one


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_setting_runs_to_its_end(name: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr(Evaluator, "check_target", lambda self: None)  # models of a moment know no one
    for check in ("PROJECTION", "GUIDANCE"):  # of the audit's power
        monkeypatch.setattr(power, check, dataclasses.replace(getattr(power, check), steps=2, pool=8))
    one = small(name)
    audited = [model for model in AUDITED if model in one["models"]]
    trained = settings.commands(one | {"robustness": {}, "audits": {}}, tmp_path)
    for command in [*trained, *settings.commands(one, tmp_path, audited)]:
        if not command.finished:
            assert command.run() in (0, INCONCLUSIVE), command.line
    root = tmp_path / name
    for model in one["models"]:
        steps = read_json(root / model / "trainer_state.json")["global_step"]
        assert steps >= 10
    expected = len(audited) * (len(one["audits"]) + bool(one.get("robustness")))
    assert len([*root.glob("*/report.json"), *root.glob("*/robustness.json")]) == expected
    for model in audited if one["audits"] else ():
        found = read_json(root / f"{model}-audit-{next(iter(one['audits']))}" / "report.json")
        assert [attack["name"] for attack in found["attacks"]]
    shutil.rmtree(root)
