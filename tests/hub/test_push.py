"""Pushing and loading with the real client against a Hub on this machine: what arrives, and when nothing does."""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.hub.local_hub import LocalHub, check_card

HUB = [".gitattributes"]  # what the Hub makes itself
CODE = "modeling_standalone.py"  # for people without calor_hf
MODEL = sorted(
    [*HUB, "README.md", "config.json", "evidence.json", "model.safetensors", CODE, "preprocessor_config.json"]
)


def client(hub: LocalHub, folder: Path, token: str | None = "hf_owner") -> dict[str, str]:
    """Environment of a process that knows no other Hub."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    known |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    known |= {"HF_HUB_DISABLE_TELEMETRY": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(Path(__file__).parents[2])}
    return known if token is None else known | {"HF_TOKEN": token}


def python(hub: LocalHub, folder: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(command, env=client(hub, folder, **options), capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="session")
def hub() -> Iterator[LocalHub]:
    with LocalHub() as found:
        yield found


@pytest.fixture(scope="session")
def seen(hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("scenario")
    done = python(hub, folder, "-m", "tests.hub.scenario", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "seen.json").read_text())
    return {**found, "words": done.stderr}


def test_nothing_is_pushed_before_training_ends_and_then_only_the_model(seen: dict[str, Any]) -> None:
    assert seen["during training"] == [HUB]
    assert seen["after training"] == [HUB, MODEL]
    assert seen["same logits"]
    assert check_card(seen["trained card"]) == []
    assert "**Not audited.**" in seen["trained card"]
    assert "from_pretrained('me/trained')" in seen["trained card"]


def test_unfinished_models_are_pushed_only_if_asked_and_without_their_optimizer(seen: dict[str, Any]) -> None:
    assert seen["unfinished"] == [HUB, MODEL, MODEL]  # two stages of an epoch, a checkpoint each


def test_every_file_of_every_revision_is_on_the_list(seen: dict[str, Any], hub: LocalHub) -> None:
    revisions = [files for name in hub.repos for history in hub.every_file(name).values() for files in history]
    assert len(revisions) > 10
    assert {file for files in revisions for file in files} == set(MODEL)


def test_a_defense_without_a_head_of_its_own_is_pushed_as_a_stock_model(seen: dict[str, Any]) -> None:
    assert seen["stock"] == "ResNetForImageClassification"
    assert seen["stock labels"] == "LABEL_0"  # not Ada: names are published only if asked
    assert "me/bido" in seen["private"]


def test_branch_and_token_of_the_arguments_count(seen: dict[str, Any]) -> None:
    assert seen["beta"][-1] == [name for name in MODEL if name != CODE]  # a stock model
    assert seen["stranger pushes"].startswith("PermissionError: the Hub refuses access to me/bido")


def test_the_model_pushes_itself_with_numbers_for_names(seen: dict[str, Any]) -> None:
    assert seen["model"] == [HUB, sorted([*HUB, "README.md", "config.json", "model.safetensors"])]
    assert (seen["model labels"], seen["labels kept"]) == ("LABEL_0", "Ada")


def test_a_dry_run_shows_and_touches_nothing(seen: dict[str, Any]) -> None:
    status, shown = seen["dry run"]
    assert status == 0
    assert all(name in shown for name in MODEL if name not in HUB)
    assert "training_args.bin" not in shown
    assert not seen["after dry run"]


def test_the_command_pushes_one_commit(seen: dict[str, Any], hub: LocalHub) -> None:
    assert seen["push"][0] == 0, seen["push"]
    assert "published: http" in seen["push"][1]
    assert seen["pushed"] == [HUB, MODEL]
    assert "me/cli" in seen["private"]
    assert seen["branch"][0] == 0, seen["branch"]
    assert seen["branches"] == ["main", "v2"]
    assert "license: mit" in hub.read("me/cli", "README.md", "v2").decode()


def test_visibility_is_not_changed_behind_anybodys_back(seen: dict[str, Any]) -> None:
    assert seen["public instead"][0] == 0
    assert "exists already and is private" in seen["words"] + seen["public instead"][1]
    assert seen["private instead"][0] == 2
    assert (
        "exists already and is public; make it private in its settings on the Hub first" in seen["private instead"][1]
    )


def test_loading_by_id(seen: dict[str, Any]) -> None:
    assert seen["logits of a revision"]
    assert seen["pipeline"].startswith("LABEL_")
    for refused in ("private without token", "stranger", "missing", "missing revision"):
        assert seen[refused].startswith("OSError"), refused
    assert "is not a valid git identifier" in seen["missing revision"]


def test_loading_with_transformers_alone(seen: dict[str, Any], hub: LocalHub, tmp_path: Path) -> None:
    script = """
import json, sys
sys.modules["calor_hf"] = None  # as if it were not installed
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline
model = AutoModelForImageClassification.from_pretrained("me/trained", trust_remote_code=True).eval()
classify = pipeline("image-classification", "me/trained", trust_remote_code=True)
answers = classify(Image.new("RGB", (32, 32)))
print(json.dumps([model(torch.ones(1, 3, 32, 32)).logits.tolist(), len(answers), type(model).__module__]))
"""
    done = python(hub, tmp_path, "-c", script)
    assert done.returncode == 0, done.stderr[-3000:]
    logits, answers, module = json.loads(done.stdout)
    assert logits == seen["logits"]
    assert answers == 5
    assert module.startswith("transformers_modules.")
    assert "pass `trust_remote_code=True`" in seen["trained card"]


def test_a_card_edited_on_the_hub_is_kept(seen: dict[str, Any]) -> None:
    assert seen["push again"][0] == 0, seen["push again"]
    assert seen["edited card"] == [True, True]


def test_names_leave_only_by_choice(seen: dict[str, Any]) -> None:
    assert seen["names"][0] == 2
    assert "1 class names, which may be people's; pass --anonymize-labels" in seen["names"][1]


@pytest.mark.parametrize(("token", "status"), [("hf_wrong", 401), ("hf_stranger", 403)])
def test_a_token_that_may_not_write(seen: dict[str, Any], token: str, status: int) -> None:
    assert seen[token][0] == 2
    assert f"the Hub refuses access to me/trained ({status}); log in with `hf auth login`" in seen[token][1]


def test_a_cut_connection_leaves_the_old_revision_and_a_second_push_completes(seen: dict[str, Any]) -> None:
    assert seen["refused upload"][0] == 1
    assert "the Hub refuses it (400" in seen["refused upload"][1]
    assert seen["cut"][0] == 1
    assert "failed 3 times" in seen["cut"][1]
    assert "the repository is unchanged" in seen["cut"][1]
    assert seen["after the cut"] == [True, True]
    assert seen["once more"][0] == 0, seen["once more"]
    assert seen["uploaded again"] == 0  # the weights were there from the push that was cut
    assert (seen["completed"], seen["new weights"]) == (1, True)
    assert seen["answer lost"][0] == 0, seen["answer lost"]
    assert (seen["one commit"], seen["last weights"]) == (1, True)
    kinds = [line.partition(" ")[0] for line in seen["failed"]]
    assert kinds == ["400", "cut", "cut", "cut", "503", "500", "cut", "cut"]


def test_the_metadata_is_checked_as_the_hub_does(hub: LocalHub, tmp_path: Path) -> None:
    if "https://huggingface.co/api" in inspect.getsource(ModelCard.validate):
        pytest.skip("this huggingface_hub asks huggingface.co, whatever HF_ENDPOINT says")
    script = """
from huggingface_hub import ModelCard
ModelCard("---\\nlicense: mit\\n---\\n# x\\n").validate()
try:
    ModelCard("---\\nbase_model: no id\\n---\\n# x\\n").validate()
except ValueError as error:
    print(error)
"""
    assert "is no id on the Hub" in python(hub, tmp_path, "-c", script).stdout
