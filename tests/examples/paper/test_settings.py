"""The paper's settings: `calor-hf` accepts their commands, and their numbers are the paper's."""

import re
from pathlib import Path
from typing import Any

import pytest

from calor_hf.cli._options import parser_for, read_options
from calor_hf.defenses import DEFENSES
from calor_hf.priors import PRIORS
from calor_hf.recipes.audit import AuditRecipe
from calor_hf.recipes.common import settings_of
from calor_hf.recipes.prior import PriorOptions
from calor_hf.recipes.robustness import RobustnessOptions
from calor_hf.recipes.train_arguments import parse
from examples.paper.__main__ import main as paper
from examples.paper.commands import settings
from examples.paper.modeling_ir import IRForImageClassification
from examples.paper.studies import STUDIES

FOLDER = Path(settings.__file__).parents[1] / "settings"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SIX = ["none", "mid", "bido", "label_smoothing", "transfer", "calor"]


def setting(name: str) -> dict[str, Any]:
    return settings.load(FOLDER / f"{name}.yaml")


def test_every_table_has_its_setting() -> None:
    assert {table for name in NAMES for table in setting(name)["tables"]} == {1, 2, 4, 5, 8, 9, *range(10, 19)}


@pytest.mark.parametrize("name", NAMES)
def test_its_commands_are_taken_and_its_numbers_complete(name: str, tmp_path: Path) -> None:
    one = setting(name)
    assert one["name"] == name
    models = list(one["models"])
    for command in settings.commands(one, tmp_path):
        assert str(command.folder) in command.options
        if command.name == "train":
            model, data, _, args = parse(command.options)
            assert data.augmentation == ("flip" if "64" in str(data.dataset) else "crop_color_flip")
            assert model.defense in DEFENSES.names()
            assert args.max_grad_norm == 0  # nothing is clipped
            total = args.num_train_epochs + model.undefended_epochs
            first = model.undefended_epochs
            assert (total, [first + epoch for epoch in args.lr_drop_epochs]) == (100, [75, 90])
        elif command.name == "audit":
            recipe = read_options(AuditRecipe, parser_for(AuditRecipe, "audit", ""), command.options)
            assert len(recipe.labels(1000)) * recipe.images_per_class == 500
            assert recipe.named_attacks
        elif command.name == "robustness":
            words = [*command.options, "--backdoor", "badnets"]  # else it is read from the trained model
            read = read_options(RobustnessOptions, parser_for(RobustnessOptions, "robustness", ""), words)
            assert read.targeted == bool(read.attacks)
        else:
            prior = read_options(PriorOptions, parser_for(PriorOptions, "prior", ""), command.options)
            kind = PRIORS.get(prior.prior)
            settings_of(kind.config_class, list(prior.settings), "--settings")
            assert kind.needs_target == (prior.target is not None)
            assert str(prior.image_size) in str(prior.dataset)  # the prepared images have the generator's size
    assert list(one["paper"]["test_accuracy"]) in (models, [])  # some tables are not known
    for attack, cells in one["paper"].items():
        if attack not in ("columns", "test_accuracy"):
            assert attack in [word for specs in one["audits"].values() for word in specs]
            assert list(cells) == models
            assert all(len(cell) == len(one["paper"]["columns"]) == 4 for cell in cells.values())
            assert all(0 <= a <= b <= 100 and c > 100 and 0 < d < 2 for a, b, c, d in cells.values())


@pytest.mark.parametrize(
    ("name", "attack", "model", "accuracy", "cell"),
    [
        ("C_facescrub_resnet152", "if_gmi", "label_smoothing", 88.8, [29.6, 57.4, 508.42, 1.01]),
        ("B_facescrub_resnet152", "plg", "calor", 96.8, [47.2, 68.8, 497.83, 1.00]),
        ("A_facescrub_ir152_head", "if_gmi", "rank_30", 97.1, [13.0, 27.0, 2299.39, 1.29]),
        ("A_facescrub_ir152_head", "if_gmi", "relu", 92.7, [14.2, 21.8, 2388.95, 1.29]),
        ("A_facescrub_ir152", "ked", "mid", 97.0, [60.0, 77.6, 1846.08, 0.81]),
        ("A_facescrub_ir152", "ppa", "bido", 95.2, [53.6, 77.2, 1708.76, 0.78]),
        ("A_celeba_ir152", "plg", "label_smoothing", 87.7, [91.6, 99.2, 1180.62, 0.70]),
        ("B_celeba_resnet152", "if_gmi", "transfer", 94.1, [100, 100, 229.10, 0.37]),
        ("B_facescrub_swinv2", "if_gmi", "none", 97.8, [45.6, 70.2, 232.24, 0.66]),
        ("B_facescrub_resnet152_head", "if_gmi", "rank_500", 98.9, [99.0, 100, 303.45, 0.55]),
    ],
)
def test_numbers_are_those_of_the_paper(name: str, attack: str, model: str, accuracy: float, cell: list[float]) -> None:
    paper = setting(name)["paper"]
    assert (paper["test_accuracy"][model], paper[attack][model]) == (accuracy, cell)


@pytest.mark.parametrize(
    ("name", "strengths"),
    [
        ("A_facescrub_ir152", (0.1, 0.01, 0.1, -0.3, 0.5, 30)),
        ("B_facescrub_resnet152", (0.005, 0.15, 1.5, -0.01, 0.7, 50)),
        ("C_facescrub_resnet152", (0.005, 0.05, 0.5, -0.02, 0.6, 32)),
    ],
)
def test_strengths_are_those_of_table_6(name: str, strengths: tuple[float, ...], tmp_path: Path) -> None:
    found: list[float] = []
    trained = [parse(c.options)[0] for c in settings.commands(setting(name), tmp_path) if c.name == "train"]
    assert [model.defense for model in trained] == ["none", *SIX]  # the evaluation model first
    for model in trained[1:]:
        values = DEFENSES.get(model.defense).config_class.parse(model.defense_settings)
        assert values.pop("schedule", "constant") == "constant"  # as MIBench has label smoothing, unlike its authors
        found += [float(value) for value in values.values()]
    assert tuple(found) == strengths


def test_the_order_and_what_is_left_out(tmp_path: Path) -> None:
    planned = settings.commands(setting("A_facescrub_ir152"), tmp_path, ["calor"])
    root = tmp_path / "A_facescrub_ir152"
    assert [(c.name, c.folder.relative_to(root).as_posix()) for c in planned] == [
        ("train", "evaluation_model"),
        ("train", "calor"),
        ("prior", "prior-stylegan2"),
        ("prior", "prior-gmi"),
        ("audit", "calor-audit-stylegan2"),
        ("audit", "calor-audit-gmi"),
        ("prior", "calor-prior-ked"),
        ("audit", "calor-audit-ked"),
        ("prior", "calor-prior-plg"),
        ("audit", "calor-audit-plg"),
    ]
    assert not any(command.finished for command in planned)
    planned[1].folder.mkdir(parents=True)
    (planned[1].folder / "metrics.json").write_text("{}")
    assert planned[1].finished
    with pytest.raises(ValueError, match="has no tanh; models: none, mid"):
        settings.commands(setting("A_facescrub_ir152"), tmp_path, ["tanh"])


def test_printing_is_the_default_and_running_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where there are no models and data
    argv = ["settings", str(FOLDER / "A_celeba_ir152.yaml"), "--models", "mid"]
    assert paper(argv) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("# The paper gives strengths")
    lines = [line for line in shown if not line.startswith("#")]
    beginning = "python -m examples.paper calor-hf "  # which knows the face networks
    assert all(line.startswith(beginning) for line in lines)
    assert [line.split()[4] for line in lines] == ["train", "train", "prior", "audit", "prior", "audit"]
    assert "--defense mid --defense-settings beta=0.1 --output-dir outputs/paper/A_celeba_ir152/mid" in lines[1]
    assert not list(tmp_path.iterdir())
    assert paper([*argv, "--run"]) == 2
    assert "no folder or file ./data/celeba-64" in capsys.readouterr().err
    (tmp_path / "x.yaml").write_text("name: x")
    assert paper(["settings", "x.yaml"]) == 2
    assert "expected the keys audit" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "calls", "returned"), [(4, 6, 0), (1, 1, 1)])
def test_an_inconclusive_audit_ends_nothing(
    status: int, calls: int, returned: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run(words: list[str]) -> int:
        ran.append(words[0])
        return status

    monkeypatch.setattr(settings, "calor_hf", run)
    argv = ["settings", str(FOLDER / "A_celeba_ir152.yaml"), "--models", "mid", "--run", "--output-dir", str(tmp_path)]
    assert paper(argv) == returned
    assert len(ran) == calls


def test_a_missing_backbone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["import-backbone", "--depth", "50", "--image-size", "16", "--output-dir", str(tmp_path / "out")]
    assert paper([*argv, "--weights", str(tmp_path / "none.pth")]) == 2
    assert "no file" in capsys.readouterr().err


@pytest.mark.slow
def test_random_weights_become_a_base_model(tmp_path: Path) -> None:
    argv = ["import-backbone", "--depth", "50", "--image-size", "16", "--output-dir", str(tmp_path / "out")]
    assert paper(argv) == 0
    model = IRForImageClassification.from_pretrained(tmp_path / "out")
    assert (model.config.image_size, len(model.network.units)) == (16, 24)


def test_commands_of_calor_hf_are_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert paper(["calor-hf", "list", "gmi"]) == 0
    assert capsys.readouterr().out.startswith("gmi (attacks): ")
    assert paper(["calor-hf", "lst"]) == 2
    assert "calor-hf: unknown command 'lst'. Did you mean 'list'?" in capsys.readouterr().err


def test_the_page_names_every_setting_study_and_table() -> None:
    page = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    before, after = page.split("## Every table and figure")
    for name in NAMES:
        assert f"| `{name}` | {', '.join(map(str, setting(name)['tables']))} |" in before
    named = set(re.findall(r"`(\w+)`", after))
    assert {*NAMES, *STUDIES.names()} <= named
    rows = [line.split(" | ")[0] for line in after.splitlines() if line.startswith("| Table")]
    assert sorted(int(number) for row in rows for number in re.findall(r"\d+", row)) == list(range(1, 20))
    for line in after.splitlines():
        for name in re.findall(r"`([A-C]_\w+)`", line):
            numbers = {int(number) for number in re.findall(r"\d+", line.split(" | ")[0])}
            assert numbers & {*setting(name)["tables"], 16}  # one row of Table 16 is a model of another setting
