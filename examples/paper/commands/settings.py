"""``settings``: the commands of one of the paper's settings, printed, or run one after the other.

A YAML file in ``settings/`` holds one setting: data set, network and pre-training. Its keys under ``train``,
``models``, ``evaluation_model``, ``priors``, ``audit`` and ``robustness`` are the options of ``calor-hf train``,
``prior``, ``audit`` and ``robustness``, which runs only if there are any; ``audits`` lists the attacks that use each
prior; ``paper`` holds the paper's numbers, and ``not_reproduced`` the differences from its recipe.
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from calor_hf.cli.main import main as calor_hf
from calor_hf.priors import PRIORS
from calor_hf.recipes.report import INCONCLUSIVE


@dataclass(frozen=True)
class Command:
    """One call of ``calor-hf``.

    Attributes:
        name: Sub-command.
        options: Its options.
        folder: Its output folder.
    """

    name: str
    options: tuple[str, ...]
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether its result exists; a prior's own command checks whether steps are left."""
        results = {"train": "metrics.json", "audit": "report.json", "robustness": "robustness.json"}
        return self.name in results and (self.folder / results[self.name]).is_file()

    @property
    def line(self) -> str:
        """Command line."""
        return shlex.join(["python", "-m", "examples.paper", "calor-hf", self.name, *self.options])

    def run(self) -> int:
        """Run or resume it in this process; return its exit status."""
        begun = self.folder.exists() and any(self.folder.iterdir())
        again = ["--resume"] if begun else []
        if begun and self.name == "train" and not _has_checkpoint(self.folder):
            again = ["--overwrite"]  # stopped before its first checkpoint: nothing to resume
        if self.name == "robustness":
            again = []  # it writes its result in the end
        return calor_hf([self.name, *self.options, *again])


def load(path: Path) -> dict[str, Any]:
    """Read a setting.

    Raises:
        ValueError: keys are missing or unknown.
    """
    known = {
        "name", "tables", "train", "models", "evaluation_model", "priors", "audit", "audits", "robustness", "paper",
        "not_reproduced",
    }  # fmt: skip
    setting = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(setting, dict) or set(setting) | {"robustness"} != known:
        found = sorted(setting) if isinstance(setting, dict) else type(setting).__name__
        raise ValueError(f"expected the keys {', '.join(sorted(known))} in {path}, got {found}")
    return setting


def commands(setting: Mapping[str, Any], output: Path, models: Sequence[str] | None = None) -> list[Command]:
    """List the commands of a setting: evaluation model, models, shared priors, then what belongs to each model.

    Args:
        setting: As :func:`load` returns it.
        output: Parent folder of all results.
        models: Names of the models to include. None means all.

    Raises:
        ValueError: an unknown model or prior.
    """
    root = output / setting["name"]
    wanted = list(setting["models"]) if models is None else list(models)
    unknown = sorted(set(wanted) - setting["models"].keys())
    unknown += sorted(setting["audits"].keys() - setting["priors"].keys())
    if unknown:
        raise ValueError(f"{setting['name']} has no {', '.join(unknown)}; models: {', '.join(setting['models'])}")
    found: list[Command] = []
    if setting["audits"]:
        found.append(
            _command("train", {"role": "evaluation", **setting["evaluation_model"]}, root / "evaluation_model")
        )
    found += [_command("train", {**setting["train"], **setting["models"][name]}, root / name) for name in wanted]
    shared = {name: part for name, part in setting["priors"].items() if not PRIORS.get(part["prior"]).needs_target}
    found += [_command("prior", part, root / f"prior-{name}") for name, part in shared.items()]
    for model in wanted:
        for name, attacks in setting["audits"].items():
            folder = root / (f"prior-{name}" if name in shared else f"{model}-prior-{name}")
            if name not in shared:
                found.append(_command("prior", {**setting["priors"][name], "target": str(root / model)}, folder))
            parts = {
                "target": str(root / model),
                "evaluation-model": str(root / "evaluation_model"),
                "generator": str(folder),
            }
            options = {**setting["audit"], **parts, "attacks": attacks}
            found.append(_command("audit", options, root / f"{model}-audit-{name}"))
        if setting.get("robustness"):
            options = {**setting["robustness"], "target": str(root / model)}
            found.append(_command("robustness", options, root / f"{model}-robustness"))
    return found


def run(argv: Sequence[str]) -> int:
    """Print or run the commands of a setting; return the status of the first that fails, else 0.

    An inconclusive audit is a result, so the next command runs.
    """
    parser = argparse.ArgumentParser(
        prog="python -m examples.paper settings",
        description="Print or run the commands of one of the paper's settings. With --run, finished commands are"
        " skipped, and interrupted ones continue.",
    )
    parser.add_argument("setting", type=Path, help="one of the YAML files in examples/paper/settings")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/paper"), help="default: outputs/paper")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="names of the models; default: all of the setting")
    parser.add_argument("--run", action="store_true", help="run the commands (days on a GPU); default: print them")
    options = parser.parse_args(argv)
    setting = load(options.setting)
    planned = commands(setting, options.output_dir, options.models)
    for note in setting["not_reproduced"]:
        print(f"# {note}")
    for command in planned:
        if options.run and command.finished:
            print(f"# done: {command.line}")
            continue
        print(command.line, flush=True)
        status = command.run() if options.run else 0
        if status not in (0, INCONCLUSIVE):
            return status
    return 0


def _command(name: str, options: Mapping[str, Any], folder: Path) -> Command:
    found: list[str] = []
    for option, value in {**options, "output-dir": str(folder)}.items():
        values = [] if value is True else value if isinstance(value, list) else [value]
        found += [f"--{option}", *(str(one) for one in values)]
    return Command(name, tuple(found), folder)


def _has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("checkpoint-*")) or any(folder.glob("undefended/*"))
