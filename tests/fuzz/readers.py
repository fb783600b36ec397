"""Files of others that the library reads: a small valid one of each kind, its damage, and its reader."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from calor_hf import CALoRForImageClassification, DefendedForImageClassification
from calor_hf.auditing import LeakageReport, run
from calor_hf.auditing._store import load_reconstruction, save_reconstruction
from calor_hf.auditing.html import to_html
from calor_hf.core.reconstruction import Cost, Reconstruction
from calor_hf.core.report import SCHEMA, checksum
from calor_hf.core.report_text import to_markdown
from calor_hf.data import bad_images
from calor_hf.generators import load_generator
from calor_hf.generators._stylegan2_import import import_stylegan2
from calor_hf.generators.stylegan2 import StyleGAN2, StyleGAN2Config
from calor_hf.hub.card import CardDetails, base_card, build_card
from calor_hf.hub.evidence import gather
from calor_hf.hub.release import prepare_release
from calor_hf.recipes.backdoor import recorded_backdoor
from calor_hf.recipes.runs import Runs
from calor_hf.targets.hf_target import HFTarget
from examples.paper import prepare, run_study
from examples.paper.convert_ir import convert_ir
from tests.attacks.tiny_world import tiny_generator
from tests.auditing.small_report import small_report
from tests.fuzz import mutators
from tests.generators.official_pkl import official_weights, write_official
from tests.hub.released_model import METHOD, audit_of, saved_model
from tests.tiny_models import tiny_base

STYLEGAN2 = StyleGAN2Config(image_size=16, width=2, max_channels=3, w_dim=4, z_dim=3, mapping_layers=2)
RECORD = run.AttackRecord("gmi", {"steps": 1}, {"generator": "renderer"}, "x", [0, 1], 2, 0, {"prior": "0"})


@dataclass(frozen=True)
class Reader:
    """A kind of file.

    Attributes:
        make: Writes valid files into a folder; the one to damage.
        damage: Change to its bytes.
        read: Reads it, given the file.
    """

    make: Callable[[Path], Path]
    damage: mutators.Mutator
    read: Callable[[Path], object]


def _model(defense: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        base = tiny_base("vit", num_labels=3)
        model: Any = (
            CALoRForImageClassification.from_base(base, rank=2)
            if defense == "calor"
            else DefendedForImageClassification.from_base(base, defense)
        )
        model.save_pretrained(folder)
        # A configuration may name this file; only trust_remote_code=True may run it.
        (folder / "evil.py").write_text(f"open({str(folder / 'canary')!r}, 'w').close()\n")
        return folder / "config.json"

    return make


def _base(folder: Path) -> Path:
    tiny_base("vit", num_labels=3).save_pretrained(folder)
    return folder / "config.json"


def _weights_of(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    return lambda folder: make(folder).with_name("model.safetensors")


def _generator(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tiny_generator(name, torch.float32).save_pretrained(folder)
        return folder / "config.json"

    return make


def _report(folder: Path) -> Path:
    folder.mkdir()
    small_report().save(folder / "report.json")
    return folder / "report.json"


def _sealed(rng: Any, content: bytes) -> bytes:
    """A damaged report; of half of them the checksum fits, as its author can make it."""
    damaged = mutators.damaged_json(rng, content)
    try:
        value = json.loads(damaged)
        value.pop("checksum")
        value.pop("schema")
        value = {"schema": SCHEMA, "checksum": checksum(value), **value}
        return json.dumps(value).encode() if rng.random() < 0.7 else damaged
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return damaged


def _show(file: Path) -> object:
    report = LeakageReport.load(file)
    return to_markdown(report), to_html(report)


def _card_folder(damaged: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        model = saved_model(folder)
        audit_of(model, folder / "audit")
        (folder / "README.md").write_text(str(_build(folder)), encoding="utf-8")
        return folder / damaged

    return make


def _build(folder: Path, existing: str | None = None) -> object:
    evidence = gather(folder, folder / "audit")
    return build_card(evidence, METHOD, CardDetails("demo", "me/demo", "apache-2.0"), existing)


def _release(file: Path) -> object:
    folder = file.parent if file.parent.name != "audit" else file.parent.parent
    return prepare_release(folder, METHOD, CardDetails("demo"), report=folder / "audit", stale_is_error=False).card


def _reconstruction(folder: Path) -> Path:
    folder.mkdir()
    found = Reconstruction(torch.rand(4, 3, 2, 2), torch.tensor([0, 0, 1, 1]), torch.rand(4, 5), torch.rand(4), Cost(1))
    save_reconstruction(found, folder / "reconstructions.safetensors")
    return folder / "reconstructions.safetensors"


def _attack_record(folder: Path) -> Path:
    folder.mkdir()
    run._begin(folder, RECORD, 1000, False, False)
    return folder / "attack.json"


def _json_file(name: str, content: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        folder.mkdir()
        (folder / name).write_text(json.dumps(content))
        return folder / name

    return make


def _outcome(file: Path) -> object:
    outcome = Runs._finished(file.parent)
    return None if outcome is None else outcome.validation_accuracy


def _stylegan2() -> StyleGAN2:
    torch.manual_seed(0)
    return StyleGAN2(STYLEGAN2).eval()


def _official(folder: Path) -> Path:
    folder.mkdir()
    write_official(folder / "net.pkl", _stylegan2())
    return folder / "net.pkl"


def _plain(ending: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        folder.mkdir()
        body, _ = official_weights(_stylegan2())
        file = folder / f"weights{ending}"
        save_file(body, file) if ending == ".safetensors" else torch.save(body, file)
        return file

    return make


_IR: dict[str, Any] = {
    "depth": 50,
    "image_size": 16,
    "hidden_sizes": (2, 2, 2, 2),
    "embedding_size": 4,
    "num_labels": 2,
}


def _ir(ending: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        weights = convert_ir(None, folder / "model", **_IR).network.state_dict()
        file = folder / f"weights{ending}"
        save_file(weights, file) if ending == ".safetensors" else torch.save(weights, file)
        return file

    return make


def _convert(file: Path) -> object:
    goal = file.parent / "out"
    shutil.rmtree(goal, ignore_errors=True)
    return convert_ir(file, goal, **_IR)


def _image(folder: Path) -> Path:
    folder.mkdir()
    (folder / "picture").write_bytes(b"")
    return folder / "picture"


def _look(file: Path) -> object:
    problem = bad_images._check({"bytes": file.read_bytes(), "path": None})["problem"]
    if problem:
        raise ValueError(problem)
    with Image.open(file) as image:
        found = bad_images.to_rgb(image)
    assert found.mode == "RGB"
    assert found.width * found.height <= 200_000_000
    return found


def _celeba(folder: Path) -> Path:
    (folder / "img_align_celeba").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    for index in range(4):
        Image.fromarray(noise).save(folder / "img_align_celeba" / f"{index}.jpg")
    lines = [f"{index}.jpg {1 + index // 2}" for index in range(4)]
    (folder / "identity_CelebA.txt").write_text("\n".join(lines))
    return folder / "identity_CelebA.txt"


def _prepare_celeba(file: Path) -> object:
    folder = file.parent.parent / "prepared"
    shutil.rmtree(folder, ignore_errors=True)
    return prepare.prepare_celeba(file.parent, folder, 16, 2)


def _begin(file: Path) -> None:
    prepare._begin("celeba", file.parent.parent / "nowhere", file.parent, {"set": "celeba"})


_MEASURED = {"result": {"validation_accuracy": 0.5, "train_confidence_correct": 0.9}}
_METRICS = {"measured": _MEASURED, "train_seconds": 1.0, "backdoor": {"trigger": {"name": "badnets"}}}
_STUDY = {"study": "rank_sweep", "settings": {"ranks": [1]}, "options": {"seed": 0}}
_OPTIONS = ["--model", "x"]

READERS: dict[str, Reader] = {
    "config.json, CALoR": Reader(
        _model("calor"), mutators.damaged_json, lambda f: CALoRForImageClassification.from_pretrained(f.parent)
    ),
    "config.json, another defense": Reader(
        _model("mid"), mutators.damaged_json, lambda f: DefendedForImageClassification.from_pretrained(f.parent)
    ),
    "config.json, base model": Reader(
        _base, mutators.damaged_json, lambda f: CALoRForImageClassification.from_pretrained(f.parent, rank=2)
    ),
    "config.json, target of an audit": Reader(
        _base, mutators.damaged_json, lambda f: HFTarget.from_pretrained(str(f.parent))
    ),
    "model.safetensors": Reader(
        _weights_of(_model("calor")),
        mutators.damaged_safetensors,
        lambda f: CALoRForImageClassification.from_pretrained(f.parent),
    ),
    "generator's config.json": Reader(
        _generator("dcgan"), mutators.damaged_json, lambda f: load_generator(str(f.parent))
    ),
    "generator's weights": Reader(
        _weights_of(_generator("stylegan2")), mutators.damaged_safetensors, lambda f: load_generator(str(f.parent))
    ),
    "report.json": Reader(_report, _sealed, _show),
    "report.json, for a card": Reader(_card_folder("audit/report.json"), _sealed, _release),
    "metrics.json, for a card": Reader(_card_folder("metrics.json"), mutators.damaged_json, _release),
    "config.json, for a card": Reader(_card_folder("config.json"), mutators.damaged_json, _release),
    "README.md": Reader(
        _card_folder("README.md"),
        mutators.damaged_text,
        lambda f: _build(f.parent, base_card(f, None)),
    ),
    "reconstructions": Reader(_reconstruction, mutators.damaged_safetensors, load_reconstruction),
    "attack.json": Reader(
        _attack_record, mutators.damaged_json, lambda f: run._begin(f.parent, replace(RECORD), 1000, True, False)
    ),
    "metrics.json of a run": Reader(_json_file("metrics.json", _METRICS), mutators.damaged_json, _outcome),
    "metrics.json, backdoor": Reader(
        _json_file("metrics.json", _METRICS), mutators.damaged_json, lambda f: recorded_backdoor(str(f.parent))
    ),
    "failure.json": Reader(_json_file("failure.json", {"error": "x"}), mutators.damaged_json, _outcome),
    "options.json of runs": Reader(
        _json_file("options.json", _OPTIONS),
        mutators.damaged_json,
        lambda f: Runs._keep_options(SimpleNamespace(folder=f.parent, common=_OPTIONS)),  # type: ignore[arg-type]
    ),
    "options.json of a study": Reader(
        _json_file("options.json", _STUDY),
        mutators.damaged_json,
        lambda f: run_study._prepare(f.parent, _STUDY, True, False),
    ),
    "StyleGAN2, official": Reader(_official, mutators.damaged_bytes, import_stylegan2),
    "StyleGAN2, safetensors": Reader(_plain(".safetensors"), mutators.damaged_safetensors, import_stylegan2),
    "StyleGAN2, torch": Reader(_plain(".pt"), mutators.damaged_bytes, import_stylegan2),
    "IR, safetensors": Reader(_ir(".safetensors"), mutators.damaged_safetensors, _convert),
    "IR, torch": Reader(_ir(".pth"), mutators.damaged_bytes, _convert),
    "picture": Reader(_image, mutators.damaged_image, _look),
    "identity_CelebA.txt": Reader(_celeba, mutators.damaged_text, _prepare_celeba),
    "record of prepared images": Reader(_json_file(".prepared.json", {"set": "celeba"}), mutators.damaged_json, _begin),
}
