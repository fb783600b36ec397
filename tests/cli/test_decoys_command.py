"""`calor-hf decoys`: the deal, its secret, and training on it."""

import html
import io
import json
import logging
import re
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # type: ignore[import-untyped]
from transformers import AutoModelForImageClassification

from calor_hf.auditing.evaluation import Evaluator
from calor_hf.cli.main import main
from calor_hf.core.decoy_sentences import SECRET, SENTENCES
from calor_hf.core.fingerprints import keep_fingerprints
from calor_hf.core.report import MODE_RANKING, LeakageReport
from calor_hf.data.bad_images import content_digests
from calor_hf.data.decoys import IDENTITIES, read_assignment, secret_folder, write_secret
from calor_hf.data.loading import load_splits
from calor_hf.data.synthetic_faces import load_synthetic_faces
from calor_hf.recipes.audit import AuditRecipe, run_audit
from calor_hf.recipes.compare import CompareOptions, compare
from calor_hf.recipes.decoys import DealOptions, deal_decoys
from calor_hf.recipes.exchangeability import CheckOptions, check_decoys
from calor_hf.recipes.private_accuracy import AccuracyOptions, private_accuracy
from calor_hf.recipes.train import load_parts, train
from calor_hf.recipes.train_arguments import parse

QUICK = ["--num-train-epochs", "1", "--use-cpu", "--report-to", "none", "--warmup-steps", "0"]
MEASURED = ("_seconds", "_runtime", "/runtime", "_per_second", "_bytes")
"""Ends of the names of what a clock or the machine's memory says."""
EVENTS = "events.out.tfevents"
TIME = rb"[A-Z][a-z]{2}\d\d_\d\d-\d\d-\d\d_"
"""Beginning of the name of a folder of TensorBoard."""


@pytest.fixture(autouse=True)
def _own_logger() -> Iterator[None]:
    ours = logging.getLogger("calor_hf")
    yield
    ours.handlers, ours.propagate = [], True


@pytest.fixture(scope="module")
def dealt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of two drawn identities."""
    folder = tmp_path_factory.mktemp("dealt") / "faces"
    return deal_decoys(DealOptions(num_identities=2, k=2, output_dir=folder, seed=3))


def table(
    path: Path, counts: list[int], first: int = 0, names: str = "Ada {}", size: int = 32, suffix: str = "JPEG",
    quality: int = 75, **columns: list[Any],
) -> str:  # fmt: skip
    """Write drawn people from number ``first`` on, so many images each, as a table with a value per person."""
    faces = load_synthetic_faces(first + len(counts), max(counts), size)
    rows = [(i, faces[(first + i) * max(counts) + j]["image"]) for i, count in enumerate(counts) for j in range(count)]
    images = []
    for _, image in rows:
        buffer = io.BytesIO()
        image.save(buffer, suffix, quality=quality)
        images.append({"bytes": buffer.getvalue(), "path": None})
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[*map(names.format, range(len(counts)))])})
    values = {name: [per_person[i] for i, _ in rows] for name, per_person in columns.items()}
    features.update({name: Value("string") for name in values})
    path.parent.mkdir(parents=True, exist_ok=True)
    data = Dataset.from_dict({"image": images, "label": [i for i, _ in rows], **values}, features=features)
    data.to_parquet(path)
    return str(path)


def test_merged_data_hold_what_the_assignment_says_and_nothing_else(dealt: Path) -> None:
    merged, secret = load_splits(str(dealt)), read_assignment(dealt)
    assert merged.label_names == ["class_000", "class_001"]
    assert set(merged.train.column_names) == {"image", "label", IDENTITIES}
    assert np.bincount(merged.train[IDENTITIES]).tolist() == [20] * 4
    assert np.bincount(merged.test[IDENTITIES]).tolist() == [10] * 4
    names = [name for of_class in secret.names for name in of_class]
    assert sorted(names) == [f"identity_{index:03d}" for index in range(4)]
    assert sorted(names[identity] for identity in secret.private) == ["identity_000", "identity_001"]
    assert [identity // 2 for identity in secret.private] == [0, 1]
    faces = load_synthetic_faces(4, 20)
    for row in (0, 33, 79):  # the pixels are those of the named person, losslessly
        label = names.index(f"identity_{faces[row]['label']:03d}")
        images = [np.asarray(one["image"]) for one in merged.train if one[IDENTITIES] == label]
        assert any(np.array_equal(image, np.asarray(faces[row]["image"])) for image in images)
    for place, mode in ((secret_folder(dealt), 0o700), (secret_folder(dealt) / "assignment.json", 0o600)):
        assert stat.S_IMODE(place.stat().st_mode) == mode
    told = b"".join(file.read_bytes() for file in dealt.iterdir())
    assert b"identity_0" not in told
    assert b'private"' not in told


def test_a_deal_without_a_seed_is_another_one(tmp_path: Path) -> None:
    options = DealOptions(num_identities=3, k=3, image_size=16)
    folders = [deal_decoys(replace(options, output_dir=tmp_path / name)) for name in ("a", "b")]
    found = [read_assignment(folder).names for folder in folders]
    assert found[0] != found[1]


def test_training_never_receives_the_assignment(dealt: Path, tmp_path: Path) -> None:
    folder, kept = tmp_path / "run", tmp_path / "first"
    secret = secret_folder(dealt) / "assignment.json"
    words = [
        "--dataset",
        str(dealt),
        "--defense=decoys",
        *QUICK,
        "--report-to=tensorboard",
        "--output-dir",
        str(folder),
    ]
    result = train(*parse(words))
    assert result.record["settings"] == {"k": 2, "rank": None}
    assert result.model.classification_head.last_layer.out_features == 4
    folder.rename(kept)
    before, data = secret.read_text(), contents(dealt)
    other = json.loads(before)
    other["private"] = [identity ^ 1 for identity in other["private"]]
    try:
        secret.write_text(json.dumps(other))
        assert read_assignment(dealt).private != json.loads(before)["private"]
        train(*parse(words))
        check_decoys(CheckOptions(data=dealt))
    finally:
        secret.write_text(before)
    one, other = contents(kept), contents(folder)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    assert contents(dealt) == data
    assert any("train/loss" in event for event in one[EVENTS])
    assert type(AutoModelForImageClassification.from_pretrained(kept)) is type(result.model)
    measured = private_accuracy(AccuracyOptions(data=dealt, model=str(kept)))
    both = measured["private"]["accuracy"] + measured["decoys"]["accuracy"]
    assert measured["private"]["images"] == measured["decoys"]["images"] == 20
    assert both / 2 == pytest.approx(result.record["measured"]["decoys"]["accuracy"])
    assert json.loads((secret.parent / "accuracy-first.json").read_text()) == measured


def contents(folder: Path) -> dict[str, Any]:
    """Content of each file in a folder, without the time and what a clock or the machine's memory says."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {EVENTS if EVENTS in path.name else str(path.relative_to(folder)): content(path) for path in files}


def content(file: Path) -> Any:
    """Content of a file; see :func:`contents`."""
    if EVENTS in file.name:
        events = list(EventFileLoader(str(file)).Load())
        for event in events:
            event.ClearField("wall_time")
        return [str(one) for one in events if not any(value.tag.endswith(MEASURED) for value in one.summary.value)]
    if file.name == "training_args.bin":  # pickled, and only written by this library
        return re.sub(TIME, b"", zipfile.ZipFile(file).read("training_args/data.pkl"))
    if file.suffix != ".json":
        return file.read_bytes()

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(one) for key, one in value.items() if not key.endswith(MEASURED)}
        return [timeless(one) for one in value] if isinstance(value, list) else value

    return timeless(json.loads(file.read_text()))


def test_files_of_two_kinds_take_one_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # The private Ada 2 and the pool's person 3 have too few images.
    private = table(tmp_path / "private.parquet", [8, 6, 2], size=40, suffix="PNG", group=["a", "b", "a"])
    pool = table(tmp_path / "pool.parquet", [5, 9, 6, 1], 3, "decoy {}", group=["b", "a", "a", "b"])
    options = DealOptions(
        dataset=private, pool=pool, k=2, strata="group", image_size=32, output_dir=tmp_path / "out"
    )  # fmt: skip
    merged = load_splits(str(deal_decoys(options)))
    assert {image.size for image in merged.train["image"]} == {(32, 32)}
    formats = {Image.open(io.BytesIO(one["bytes"])).format for one in merged.train.cast_column(
        "image", ImageFeature(decode=False))["image"]}  # fmt: skip
    assert formats == {"PNG"}
    about = json.loads((tmp_path / "out" / "decoys.json").read_text())
    assert (about["strata"], about["base_rate"]) == ("group", 0.5)
    secret = read_assignment(tmp_path / "out")
    of_class = {
        names[identity % 2]: names[1 - identity % 2]
        for names, identity in zip(secret.names, secret.private, strict=True)
    }
    assert of_class["Ada 0"] in ("decoy 1", "decoy 2")
    assert of_class["Ada 1"] == "decoy 0"
    # 5 images: one for the test split, one for the validation split; the others keep as many.
    label = next(c for c, names in enumerate(secret.names) if "Ada 1" in names)
    counts = np.bincount(merged.train[IDENTITIES])[2 * label : 2 * label + 2]
    assert counts.tolist() == [3, 3]
    with pytest.raises(ValueError, match=r"images have the sizes 32 x 32, 40 x 40; pass --image-size, at most 32"):
        deal_decoys(replace(options, image_size=None, output_dir=tmp_path / "b"))
    with pytest.raises(ValueError, match="--image-size 36 would enlarge images of 32 pixels"):
        deal_decoys(replace(options, image_size=36, output_dir=tmp_path / "b"))
    assert not secret_folder(tmp_path / "b").exists()


def folder_of_faces(root: Path, first: int, groups: list[str]) -> str:
    """Folders of three images each, of drawn people from number ``first`` on, and their groups in a metadata file."""
    rows, faces = ["file_name,group"], load_synthetic_faces(first + len(groups), 3, 32)
    for number, face in enumerate(faces.select(range(3 * first, len(faces)))):
        file = root / f"person {face['label']}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        face["image"].save(file)
        rows.append(f"{file.parent.name}/{file.name},{groups[face['label'] - first]}")
    (root / "metadata.csv").write_text("\n".join(rows))
    return str(root)


def test_strata_are_a_column_of_metadata_files_next_to_folders(tmp_path: Path) -> None:
    private, pool = folder_of_faces(tmp_path / "private", 0, ["a", "b"]), tmp_path / "pool"
    folder_of_faces(pool, 2, ["b", "b", "a"])
    options = DealOptions(dataset=private, pool=str(pool), k=2, strata="group", output_dir=tmp_path / "out")
    classes = [set(names) for names in read_assignment(deal_decoys(options)).names]
    assert {"person 0", "person 4"} in classes
    assert any("person 1" in names and names & {"person 2", "person 3"} for names in classes)
    (pool / "metadata.csv").unlink()
    with pytest.raises(ValueError, match=r"no metadata file in .*pool has a column 'group'.*add a metadata.csv"):
        deal_decoys(replace(options, output_dir=tmp_path / "other"))


def test_people_without_a_stratum_are_refused(tmp_path: Path) -> None:
    private = table(tmp_path / "private.parquet", [3, 3], group=["a", None])
    options = DealOptions(dataset=private, pool=private, k=2, strata="group", output_dir=tmp_path / "out")
    with pytest.raises(ValueError, match="images of Ada 1 have no value of group; give each identity one"):
        deal_decoys(options)


def test_people_with_too_few_images_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private = table(tmp_path / "private.parquet", [4, 4, 2])
    pool = table(tmp_path / "pool.parquet", [4, 4, 2], 3, "decoy {}")
    deal_decoys(DealOptions(dataset=private, pool=pool, k=2, min_images=4, output_dir=tmp_path / "out"))
    shown = capsys.readouterr().out
    assert "1 private identities are left out: Ada 2 (2 of 4 images)" in shown
    assert "1 identities of the pool are left out: decoy 2 (2 of 4 images)" in shown
    assert all(sentence in shown for sentence in SENTENCES)


def test_what_cannot_be_dealt_is_refused_and_nothing_written(tmp_path: Path, dealt: Path) -> None:
    private = table(tmp_path / "private.parquet", [3, 3])
    pool = table(tmp_path / "pool.parquet", [3, 3], 2, "decoy {}")
    copied = table(tmp_path / "copied.parquet", [3, 3], 1, "decoy {}")  # the second private person
    named = table(tmp_path / "named.parquet", [3, 3], 2)
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.json").write_text("{}")
    keep_fingerprints(run, content_digests(load_splits(private).train))
    for changes, error, message in (
        ({"model": str(run)}, ValueError, "was trained on 2 of the private images"),
        ({"k": 3}, ValueError, "k=3 needs 4 identities in the pool, and it has 2 with enough images"),
        (
            {"pool": copied},
            ValueError,
            "1 pairs of identities have an image in common.*: .*person 1 and decoy 0|decoy 0 and",
        ),
        ({"pool": named}, ValueError, r"2 identities are in both sets \(Ada 0, Ada 1\)"),
        ({"strata": "group"}, ValueError, "the train split has no column 'group'"),
        ({"output_dir": run / "data"}, ValueError, r"inside .*run, the output of a command \(metrics.json\)"),
        ({"output_dir": run}, FileExistsError, "is not empty; pass another --output-dir"),
        ({"output_dir": dealt}, FileExistsError, "must stay the same"),
    ):
        options = DealOptions(dataset=private, pool=pool, k=2, output_dir=tmp_path / "out")
        with pytest.raises(error, match=message):
            deal_decoys(replace(options, **changes))
        assert not (tmp_path / "out").exists()
        assert not secret_folder(tmp_path / "out").exists()
    for wrong, message in (
        ({"k": 17}, r"--k must be in \[2, 16\]"), ({"min_images": 2}, "--min-images must be >= 3"),
        ({"dataset": private}, "--pool is missing"), ({"pool": pool}, "PRIVATE is missing"),
        ({"dataset": private, "pool": pool, "num_identities": 5}, "leave it out with data of your own"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            DealOptions(**wrong)


def test_training_refuses_what_would_undo_the_decoys(dealt: Path, tmp_path: Path) -> None:
    decoys = ["--defense", "decoys", *QUICK, "--output-dir", str(tmp_path / "out")]
    on_them = ["--dataset", str(dealt), *decoys]

    def parts(words: list[str]) -> Any:
        model, data, _, args = parse(words)
        return load_parts(model, data, args)

    def refused(words: list[str], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            parts(words)

    refused(["--num-identities", "2", *decoys], "these have no column identities; make them with calor-hf decoys deal")
    refused([*on_them, "--k", "4"], "the data have 2 identities per class, got --k 4")
    refused([*on_them, "--rank", "auto"], "rank must be int or none, got 'auto'")
    refused([*on_them, "--undefended-epochs", "1"], "leave it out with decoys")
    refused([*on_them, "--backdoor", "badnets"], "--backdoor relabels images")
    base = tmp_path / "base"
    model, _, common = parts(["--num-identities", "2", "--defense", "none"])
    for part in (model, common["processing_class"]):
        part.save_pretrained(base)
    (base / "metrics.json").write_text('{"dataset": "synthetic faces, 2 private identities", "drawn": true}')
    refused([*on_them, "--model", str(base)], "was trained on the private people of")
    (base / "metrics.json").unlink()
    digests = content_digests(load_splits(str(dealt)).train)
    keep_fingerprints(base, digests[:20])
    refused([*on_them, "--model", str(base)], "or on some of its identities alone")
    keep_fingerprints(base, digests)
    parts([*on_them, "--model", str(base)])  # of all identities alike
    with pytest.raises(ValueError, match="holds the secret of the decoys"):
        train(*parse([*on_them[:2], *decoys[:-2], "--output-dir", str(secret_folder(dealt) / "run")]))
    with pytest.raises(ValueError, match="no column identities"):
        compare(CompareOptions(defenses=["decoys"], output_dir=tmp_path / "c", train_options=["--num-identities", "2"]))


def test_help_names_the_sub_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decoys", "--help"]) == 0
    assert "usage: calor-hf decoys {deal" in capsys.readouterr().out
    assert main(["decoys", "dael"]) == 2
    assert "Did you mean 'decoys deal'?" in capsys.readouterr().err


def test_decoys_of_another_source_are_refused_unless_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private = table(tmp_path / "private.parquet", [4] * 24, suffix="PNG")
    pool = table(tmp_path / "pool.parquet", [4] * 24, 24, "decoy {}", quality=40)
    folder, words = tmp_path / "out", ["decoys", "deal", private, "--pool", pool, "--k", "2", "--seed", "0"]
    assert main([*words, "--output-dir", str(folder)]) == 2
    assert "can be told apart" in capsys.readouterr().err
    assert not folder.exists()
    assert not secret_folder(folder).exists()
    assert main([*words, "--output-dir", str(folder), "--accept-distinguishable-decoys"]) == 0
    capsys.readouterr()
    assert main(["decoys", "check", str(folder)]) == 2
    shown = capsys.readouterr()
    assert "image statistics: AUC" in shown.out
    assert "pass --accept-distinguishable-decoys" in shown.err
    verdict = secret_folder(folder) / "exchangeability.json"
    assert stat.S_IMODE(verdict.stat().st_mode) == 0o600
    assert json.loads(verdict.read_text())["tests"][0]["low"] > 0.75


def test_check_takes_the_features_of_a_model(dealt: Path, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = check_decoys(CheckOptions(data=dealt, model=target))
    assert [test.name for test in found.tests] == ["image statistics", "features of a local model"]
    shown = capsys.readouterr().out
    assert "exchangeable by construction: an attacker names the private identity of a class in 1/k = 50.0 %" in shown
    assert all(sentence in shown for sentence in SENTENCES)
    with pytest.raises(FileNotFoundError, match="no assignment of decoys in"):
        check_decoys(CheckOptions(data=dealt.parent))
    file = dealt / "test.parquet"
    before = file.read_bytes()
    try:
        file.write_bytes(before + b" ")
        with pytest.raises(ValueError, match="belongs to other data than"):
            check_decoys(CheckOptions(data=dealt))
    finally:
        file.write_bytes(before)


@pytest.mark.slow
def test_a_model_with_decoys_is_audited_and_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = deal_decoys(DealOptions(num_identities=20, k=2, image_size=32, output_dir=tmp_path / "people", seed=3))
    model, judge, folder = (str(tmp_path / name) for name in ("model", "judge", "audit"))
    train(*parse(["--dataset", str(data), "--defense", "decoys", *QUICK, "--output-dir", model]))
    judging = ["--role", "evaluation", "--dataset", str(data), *QUICK]
    train(*parse([*judging, "--label-column", IDENTITIES, "--output-dir", judge]))
    monkeypatch.setattr(Evaluator, "check_target", lambda self: None)  # it learned for a moment
    words = ["audit", model, "--dataset", str(data), "--generator", "renderer", "--output-dir", folder, "--skip-power",
             "--attacks", "mode_ranking:steps=2", "--images-per-class", "2"]  # fmt: skip
    with pytest.raises(ValueError, match=f"--role evaluation .*--dataset {data} --label-column identities"):
        run_audit(AuditRecipe(model=model, dataset=str(data), generator="renderer"))
    assert main([*words, "--evaluation-model", judge]) in (0, 4)
    report = LeakageReport.load(folder)
    assert report.secret
    assert report.attacks[0].get(MODE_RANKING) is not None
    assert "exchangeable by construction" in report.data.exchangeability
    for name in ("report.md", "report.html"):
        text = html.unescape((Path(folder) / name).read_text())
        assert all(sentence in text for sentence in (SECRET, *SENTENCES))
    assert main(["card", model, "--report", folder]) == 0
    card = (Path(model) / "README.md").read_text()
    assert all(sentence in card for sentence in SENTENCES)
    assert SECRET not in card
    # With other private identities no more than shares differs in what is published, and these are rounded to 1 %.
    assignment = secret_folder(data) / "assignment.json"
    drawn = json.loads(assignment.read_text())
    private = [identity ^ (label % 2) for label, identity in enumerate(drawn["private"])]
    write_secret(data, assignment.name, drawn | {"private": private})
    again = str(tmp_path / "other")
    assert main([*words, "--evaluation-model", judge, "--output-dir", again]) in (0, 4)
    assert LeakageReport.load(again).to_json() != report.to_json()
    one, other = (rounded(json.loads(some.publishable().to_json())) for some in (report, LeakageReport.load(again)))
    assert one == other
    secret_folder(data).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"no assignment of decoys in .*; pass the folder that calor-hf decoys"):
        run_audit(AuditRecipe(model=model, dataset=str(data), generator="renderer", evaluation_model=judge,
                              output_dir=str(tmp_path / "again")))  # fmt: skip
    assert not any((tmp_path / "again").rglob("*.safetensors"))


def rounded(value: Any) -> Any:
    """JSON value whose shares of 1 % are replaced, whole numbers in text too, without checksum and times."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items() if key not in ("checksum", "created", "seconds")}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    if isinstance(value, float) and value == round(value, 2):
        return "a share"
    return re.sub(r"\b\d+(\.0)?(?!\.?\d)", "a share", value) if isinstance(value, str) else value
