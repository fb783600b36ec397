"""Steps of users, against the local Hub, in a process of its own: ``python -m tests.hub.scenario FOLDER``.

The Hub's constants are read at import, so ``HF_ENDPOINT`` and its siblings have to be set before. Prints one JSON
object: what each step saw.
"""

import json
import os
import sys
import urllib.request
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline

from calor_hf.cli.main import main as calor_hf
from calor_hf.hub import push
from tests.hub.released_model import with_junk
from tests.training.small_task import defense_trainer

ENDPOINT = os.environ["HF_ENDPOINT"]


def faults(*wanted: dict[str, Any]) -> None:
    request = urllib.request.Request(f"{ENDPOINT}/_local/faults", json.dumps(wanted).encode(), method="POST")
    urllib.request.urlopen(request).read()


def state(part: str = "repos") -> Any:
    return json.loads(urllib.request.urlopen(f"{ENDPOINT}/_local/state").read())[part]


def files(repo: str, branch: str = "main") -> list[list[str]]:
    found: list[list[str]] = state()[repo][branch]
    return found


def run(*words: object) -> tuple[int, str]:
    """A command and what it printed."""
    shown = StringIO()
    with redirect_stdout(shown), redirect_stderr(shown):
        status = calor_hf([str(word) for word in words])
    return status, shown.getvalue()


def error_of(do: Any) -> str:
    try:
        do()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def loaded(source: str, **options: Any) -> torch.Tensor:
    model = AutoModelForImageClassification.from_pretrained(source, **options).eval()
    logits: torch.Tensor = model(torch.ones(1, 3, 32, 32)).logits.detach()
    return logits


def training(folder: Path, repo: str, name: str = "calor", **changes: Any) -> Any:
    """Train with pushing on and every bad habit, then push as the Trainer does."""
    found = defense_trainer(
        with_junk_beside(folder), name, "resnet", push_to_hub=True, hub_model_id=repo, **changes,
    )  # fmt: skip
    found.train()
    return found


def with_junk_beside(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return with_junk(folder)


def main(folder: Path) -> dict[str, Any]:
    """Every step in turn."""
    push.WAITS = (0.1, 0.1)
    api = HfApi()
    seen: dict[str, Any] = {}

    # The Trainer
    trainer = training(folder / "run", "me/trained", publish_label_names=True)
    seen["during training"] = files("me/trained")
    trainer.save_model()  # with push_to_hub this pushes
    seen["after training"] = files("me/trained")
    seen["trained card"] = Path(api.hf_hub_download("me/trained", "README.md")).read_text()
    seen["logits"] = loaded("me/trained").tolist()
    seen["same logits"] = bool(torch.equal(loaded("me/trained"), loaded(str(folder / "run"))))
    training(folder / "unfinished", "me/unfinished", push_unfinished=True, hub_strategy="every_save")
    seen["unfinished"] = files("me/unfinished")
    bido = training(folder / "bido", "me/bido", "bido", save_strategy="no", hub_private_repo=True)
    bido.model.config.id2label[0] = "Ada"
    bido.push_to_hub()
    bido.args.hub_revision = "beta"
    bido.push_to_hub()
    seen["beta"] = files("me/bido", "beta")
    bido.args.hub_token = "hf_stranger"
    seen["stranger pushes"] = error_of(bido.push_to_hub)
    stock = AutoModelForImageClassification.from_pretrained("me/bido")
    seen["stock"], seen["stock labels"] = type(stock).__name__, stock.config.id2label[0]

    # The model
    trainer.model.config.id2label = {0: "Ada", **{i: f"LABEL_{i}" for i in range(1, 6)}}
    trainer.model.push_to_hub("me/model", private=True, anonymize_labels=True)
    seen["model"] = files("me/model")
    seen["model labels"] = AutoModelForImageClassification.from_pretrained("me/model").config.id2label[0]
    seen["labels kept"] = trainer.model.config.id2label[0]

    # The command
    words = ["push", folder / "run", "me/cli"]
    seen["dry run"] = run(*words, "--dry-run")
    seen["after dry run"] = "me/cli" in state()
    seen["push"] = run(*words, "--private", "--license", "apache-2.0")
    seen["pushed"], seen["private"] = files("me/cli"), state("private")
    seen["branch"] = run(*words, "--branch", "v2", "--license", "mit")
    seen["branches"] = sorted(state()["me/cli"])
    seen["public instead"] = run(*words, "--public")
    public = ["push", folder / "run", "me/trained"]
    seen["private instead"] = run(*public, "--private")

    # Loading
    seen["logits of a revision"] = bool(torch.equal(loaded("me/cli", revision="v2"), loaded(str(folder / "run"))))
    answers = pipeline("image-classification", "me/cli")(Image.new("RGB", (32, 32)))
    seen["pipeline"] = sorted(answer["label"] for answer in answers)[0]
    elsewhere: dict[str, Any] = {"cache_dir": str(folder / "cache")}
    seen["private without token"] = error_of(lambda: loaded("me/cli", token=False, **elsewhere))
    seen["stranger"] = error_of(lambda: loaded("me/cli", token="hf_stranger", **elsewhere))
    seen["missing"] = error_of(lambda: loaded("me/nothing", **elsewhere))
    seen["missing revision"] = error_of(lambda: loaded("me/cli", revision="v9", **elsewhere))

    # A card that a person edited on the Hub
    card = Path(api.hf_hub_download("me/cli", "README.md")).read_text().replace("# cli", "# Edited on the Hub")
    api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id="me/cli")
    seen["push again"] = run(*words)
    again = Path(api.hf_hub_download("me/cli", "README.md")).read_text()
    seen["edited card"] = ["# Edited on the Hub" in again, "license: apache-2.0" in again]

    # Trouble
    for token in ("hf_wrong", "hf_stranger"):
        os.environ["HF_TOKEN"] = token
        seen[token] = run("push", folder / "run", "me/trained")
    os.environ["HF_TOKEN"] = "hf_owner"
    changed = trainer.model
    with torch.no_grad():
        next(changed.parameters()).add_(1)
    changed.save_pretrained(folder / "run")  # with a class named Ada
    (folder / "run" / "metrics.json").unlink()  # of the weights before
    seen["names"] = run(*words)
    words.append("--anonymize-labels")
    before, commit = files("me/cli"), {"method": "POST", "path": "/commit/"}
    old = loaded("me/cli", **elsewhere)
    faults({"method": "PUT", "path": "/_lfs/", "kind": 400})
    seen["refused upload"] = run(*words)
    faults({**commit, "kind": "cut", "times": 3})
    seen["cut"] = run(*words)
    seen["after the cut"] = [files("me/cli") == before, bool(torch.equal(loaded("me/cli", **elsewhere), old))]
    uploads = sum(line.startswith("PUT") for line in state("requests"))
    faults({**commit, "kind": 500, "times": 1}, {"method": "POST", "path": "/preupload/", "kind": 503})
    seen["once more"] = run(*words)
    seen["uploaded again"] = sum(line.startswith("PUT") for line in state("requests")) - uploads
    seen["completed"] = len(files("me/cli")) - len(before)
    seen["new weights"] = bool(torch.equal(loaded("me/cli"), loaded(str(folder / "run"))))
    next(changed.parameters()).data.add_(1)
    changed.save_pretrained(folder / "run")
    faults({"method": "PUT", "path": "/_lfs/", "kind": "cut"}, {**commit, "kind": "cut after"})
    seen["answer lost"] = run(*words)
    seen["one commit"] = len(files("me/cli")) - len(before) - 1
    seen["failed"] = state("failed")
    seen["last weights"] = bool(torch.equal(loaded("me/cli"), loaded(str(folder / "run"))))
    return seen


if __name__ == "__main__":
    result = main(Path(sys.argv[1]))
    (Path(sys.argv[1]) / "seen.json").write_text(json.dumps(result, default=list))
