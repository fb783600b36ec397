"""Rules of the house that no linter knows; every check is first shown to fail on a made-up source."""

import ast
import configparser
import graphlib
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "calor_hf"

# Folder: what it may import besides itself, no circle among them. `recipes` joins the two halves; `cli`, examples/ and
# benchmarks/ stand on `recipes`. `data` is at the bottom: images and their processors are what every part handles.
MAY_IMPORT = {
    "core": set(),
    "data": {"core"},
    "heads": {"core"},
    "targets": {"core", "data", "heads"},
    "defenses": {"core", "data", "heads"},
    "modeling": {"core", "data", "heads", "defenses"},
    "hub": {"core"},
    "training": {"core", "data", "heads", "defenses", "modeling", "hub"},
    "generators": {"core", "data"},
    "priors": {"core", "data", "heads", "targets", "generators"},
    "attacks": {"core", "data", "heads", "targets", "generators"},
    "metrics": {"core", "data", "heads", "targets"},
    "robustness": {"core", "data", "targets"},
    "auditing": {"core", "data", "targets", "generators", "attacks", "metrics"},
}
MAY_IMPORT["recipes"] = set(MAY_IMPORT)
MAY_IMPORT["cli"] = set(MAY_IMPORT)

TOOLS = ("test", "lint", "docs", "dev")  # extras for those who work on the package
# Declared, though no file of ours imports them.
IMPORTED_BY_OTHERS = {
    "tensorboard": "transformers, for the log that training writes by default",
    "timm": "transformers, for models of timm",
    "torchvision": "timm",
    "onnx": "torch.onnx.export",
    "onnxscript": "torch.onnx.export",
}

# Joined here, so that this file does not find itself.
FOLDERS = "|".join(("work", "farm", "root", "home", "opt", "mnt", "Users"))
MACHINE_TEXT = re.compile(rf"(^|[^.\w])/({FOLDERS})/|" + "index" + "-url", re.MULTILINE)


def imported_modules(source: str) -> Iterator[str]:
    """Dotted names that ``source`` imports anywhere: in functions and for type checkers too."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            names = [f"{origin}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and call_name(node).endswith("import_module") and node.args:
            names = [str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        yield from names


def call_name(call: ast.Call) -> str:
    return ast.unparse(call.func)


def wrong_imports(part: str, source: str) -> list[str]:
    """Imports of a file of ``part`` that the table does not allow, and those that go around it."""
    allowed = MAY_IMPORT[part] | {part, "_version", "__version__"}
    ours = [name for name in imported_modules(source) if name.split(".")[0] in ("calor_hf", "")]
    return [name for name in ours if ([*name.split("."), ""])[1] not in allowed]


def private_imports(part: str, source: str) -> list[str]:
    """Names with a leading underscore that are imported from another folder of the package."""
    ours = [name.split(".")[1:] for name in imported_modules(source) if name.startswith("calor_hf.")]
    others = [names for names in ours if names[0] not in (part, "_version")]
    return [".".join(names) for names in others if any(name.startswith("_") for name in names[1:])]


def commands_imported(source: str) -> list[str]:
    """Imports of the command line that code outside the package may not have: it uses recipes.

    ``calor_hf.cli.main`` is the program itself, for code that runs a command as a user does.
    """
    names = [name for name in imported_modules(source) if name.split(".")[:2] == ["calor_hf", "cli"]]
    return [name for name in names if name != "calor_hf.cli.main.main"]


def packages_of_others(source: str) -> set[str]:
    """Top names that ``source`` imports and that neither Python nor we bring."""
    tops = {name.split(".")[0] for name in imported_modules(source)}
    return tops - sys.stdlib_module_names - {"calor_hf", ""}


def declared() -> dict[str, str]:
    """Packages that a user may install, the requirements and the extras, with its lowest version."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = [text for name, text in setup["options.extras_require"].items() if name not in TOOLS]
    lines = "\n".join([setup["options"]["install_requires"], *extras]).split()
    return {name: versions for name, _, versions in (line.partition(">=") for line in lines)}


def unsafe_loads(source: str) -> list[str]:
    """Calls that may run code from the file they read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "dill", "joblib", "torch"):
            found += [f"from {node.module} import {a.name}" for a in node.names if a.name in ("load", "loads")]
        if not isinstance(node, ast.Call):
            continue
        options = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        name = call_name(node)
        if (
            re.fullmatch(r"(pickle|dill|joblib)\.loads?", name)
            or (name == "torch.load" and options.get("weights_only") is not True)
            or (re.fullmatch(r"(np|numpy)\.load", name) and options.get("allow_pickle"))
        ):
            found.append(ast.unparse(node))
    return found


def python_files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def text_files() -> Iterator[tuple[Path, str]]:
    """Everything that is ours and text: the files at the top, and those below the folders that we keep."""
    kept = [ROOT / name for name in ("calor_hf", "tests", "examples", "benchmarks", "docs", ".ci", ".github")]
    for file in [*ROOT.iterdir(), *(file for folder in kept for file in folder.rglob("*"))]:
        if file.is_file() and file.name != ".git" and "__pycache__" not in file.parts and file.suffix != ".pyc":
            content = file.read_bytes()
            if b"\0" not in content:
                yield file, content.decode()


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    ("part", "source", "wrong"),
    [
        ("core", "import torch\nfrom calor_hf.core.config import MethodConfig", []),
        ("core", "from calor_hf._version import __version__", []),
        ("core", "import calor_hf.heads.features", ["calor_hf.heads.features"]),
        ("defenses", "from calor_hf.attacks import ATTACKS", ["calor_hf.attacks.ATTACKS"]),
        ("defenses", "from calor_hf import attacks", ["calor_hf.attacks"]),
        ("training", "def f():\n    from calor_hf.auditing.run import audit", ["calor_hf.auditing.run.audit"]),
        ("heads", "if TYPE_CHECKING:\n    from calor_hf.modeling import x", ["calor_hf.modeling.x"]),
        ("data", "importlib.import_module('calor_hf.hub.card')", ["calor_hf.hub.card"]),
        ("hub", "from calor_hf import LowRankHead", ["calor_hf.LowRankHead"]),
        ("hub", "import calor_hf", ["calor_hf"]),
        ("hub", "from ..data import faces", ["..data.faces"]),
        ("cli", "from calor_hf.attacks import x\nfrom calor_hf.training.trainer import y", []),
        ("recipes", "from calor_hf.cli.main import main", ["calor_hf.cli.main.main"]),
        ("auditing", "from calor_hf.recipes import runs", ["calor_hf.recipes.runs"]),
    ],
)
def test_import_checker_sees(part: str, source: str, wrong: list[str]) -> None:
    assert wrong_imports(part, source) == wrong


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("torch.load(f, weights_only=True)\njson.load(f)\nnp.load(f)", 0),
        ("torch.load(f)", 1),
        ("torch.load(f, weights_only=False)", 1),
        ("pickle.load(f)", 1),
        ("x = pickle.loads(b)", 1),
        ("from pickle import loads", 1),
        ("from torch import load", 1),
        ("np.load(f, allow_pickle=True)", 1),
    ],
)
def test_loading_checker_sees(source: str, found: int) -> None:
    assert len(unsafe_loads(source)) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see https://example.org/work/item, ./work/x and a/home/b", False),
        ("path/" + "to/model", False),
        ("/" + "work/x", True),
        ("cd '/" + "home/me/x'", True),
        ("pip --extra-" + "index" + "-url x", True),
    ],
)
def test_text_checker_sees(text: str, found: bool) -> None:
    assert bool(MACHINE_TEXT.search(text)) == found


def test_command_checker_sees() -> None:
    source = "from calor_hf.cli.main import main\nfrom calor_hf.cli.audit import main\nimport calor_hf.cli.train"
    assert commands_imported(source) == ["calor_hf.cli.audit.main", "calor_hf.cli.train"]
    assert commands_imported("from calor_hf.recipes.train import train\nfrom calor_hf import cli") == ["calor_hf.cli"]


def test_package_checker_sees() -> None:
    source = "import sys, os.path\nfrom calor_hf.core import x\nfrom . import y\ndef f():\n    import PIL.Image"
    assert packages_of_others(source) == {"PIL"}


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    named = packages_distributions()  # Pillow for PIL
    tops = {top for file in python_files("calor_hf") for top in packages_of_others(file.read_text())}
    imported = {named.get(top, [top])[0].lower().replace("_", "-") for top in tops}
    assert imported.isdisjoint(IMPORTED_BY_OTHERS)
    assert imported | set(IMPORTED_BY_OTHERS) == set(declared())


def test_every_requirement_has_a_lowest_version() -> None:
    assert {name for name, versions in declared().items() if not re.fullmatch(r"\d+(\.\d+)*", versions)} == set()


def test_every_part_has_a_row() -> None:
    assert {f.parent.relative_to(PACKAGE).parts[0] for f in PACKAGE.glob("*/**/*.py")} <= set(MAY_IMPORT)


def test_imports_go_one_way() -> None:
    wrong = {
        relative(file): names
        for file in PACKAGE.glob("*/**/*.py")
        if (names := wrong_imports(file.relative_to(PACKAGE).parts[0], file.read_text()))
    }
    assert wrong == {}


def test_private_names_stay_in_their_folder() -> None:
    lines = ("attacks._sac import Agents", "attacks.base import _best", "_version import __version__")
    source = "\n".join(f"from calor_hf.{line}" for line in lines)
    assert private_imports("cli", source) == ["attacks._sac.Agents", "attacks.base._best"]
    assert private_imports("attacks", source) == []
    files = [*PACKAGE.glob("*/**/*.py"), *python_files("examples", "benchmarks")]
    wrong = {
        relative(file): names
        for file in files
        if (names := private_imports(relative(file).removeprefix("calor_hf/").split("/")[0], file.read_text()))
    }
    assert wrong == {}


def test_no_circle_of_folders() -> None:
    order = list(graphlib.TopologicalSorter(MAY_IMPORT).static_order())  # raises CycleError
    assert order[0] == "core"
    assert order[-1] == "cli"


def test_package_stands_without_examples_and_benchmarks() -> None:
    outside = {"examples", "benchmarks", "tests", "docs"}
    wrong = {
        relative(f): names for f in python_files("calor_hf") if (names := packages_of_others(f.read_text()) & outside)
    }
    assert wrong == {}


def test_examples_and_benchmarks_use_recipes() -> None:
    files = python_files("examples", "benchmarks")
    assert {relative(file): found for file in files if (found := commands_imported(file.read_text()))} == {}


def test_nothing_is_unpickled() -> None:
    files = python_files("calor_hf", "examples", "benchmarks")
    assert {relative(file): found for file in files if (found := unsafe_loads(file.read_text()))} == {}


def test_no_text_names_a_machine() -> None:
    found = {relative(file): m.group() for file, text in text_files() if (m := MACHINE_TEXT.search(text))}
    assert found == {}
