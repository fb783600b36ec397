"""The commands that one of the paper's settings stands for, printed, or run one after the other.

Printed, and run for two of its models::

    python examples/paper/run.py examples/paper/A_facescrub_ir152.yaml
    python examples/paper/run.py examples/paper/A_facescrub_ir152.yaml --models none calor --run

A YAML file holds one setting: data set, network and pre-training. Its keys under ``train``, ``models``,
``evaluation_model``,
``priors`` and ``audit`` are the options of ``calor-hf train``, ``prior`` and ``audit``; ``audits`` says which attacks
paint with which prior; ``paper`` holds the paper's numbers, and ``not_reproduced`` what differs from its recipe. With
``--run``, a command that has finished is left out, and one that was stopped goes on.
"""

import argparse
import importlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from calor_hf.priors import PRIORS


@dataclass(frozen=True)
class Command:
    """One call of ``calor-hf``.

    Attributes:
        name: Sub-command.
        words: Its options.
        folder: Its output folder.
    """

    name: str
    words: tuple[str, ...]
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether its result is there; of a prior the resumed command sees by itself whether steps are left."""
        results = {"train": "metrics.json", "audit": "report.json"}
        return self.name in results and (self.folder / results[self.name]).is_file()

    @property
    def line(self) -> str:
        """As a user types it."""
        return shlex.join(["calor-hf", self.name, *self.words])

    def run(self) -> int:
        """Run it in this process, or go on with it; its exit status."""
        begun = self.folder.exists() and any(self.folder.iterdir())
        again = ["--resume"] if begun else []
        if begun and self.name == "train" and not _has_checkpoint(self.folder):
            again = ["--overwrite"]  # stopped before its first checkpoint: there is nothing to go on with
        status: int = importlib.import_module(f"calor_hf.cli.{self.name}").main([*self.words, *again])
        return status


def load(path: Path) -> dict[str, Any]:
    """A setting.

    Raises:
        ValueError: parts are missing or unknown.
    """
    known = {
        "name", "tables", "train", "models", "evaluation_model", "priors", "audit", "audits", "paper", "not_reproduced",
    }  # fmt: skip
    setting = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(setting, dict) or set(setting) != known:
        found = sorted(setting) if isinstance(setting, dict) else type(setting).__name__
        raise ValueError(f"expected the keys {', '.join(sorted(known))} in {path}, got {found}")
    return setting


def commands(setting: Mapping[str, Any], output: Path, models: Sequence[str] | None = None) -> list[Command]:
    """Evaluation model and models, then the priors that serve all of them, then those for one model, and audits.

    Args:
        setting: As :func:`load` returns it.
        output: Folder of all results.
        models: Names of those wanted; None: all.

    Raises:
        ValueError: an unknown model or prior.
    """
    root = output / setting["name"]
    wanted = list(setting["models"]) if models is None else list(models)
    unknown = sorted(set(wanted) - setting["models"].keys())
    unknown += sorted(setting["audits"].keys() - setting["priors"].keys())
    if unknown:
        raise ValueError(f"{setting['name']} has no {', '.join(unknown)}; models: {', '.join(setting['models'])}")
    found = [_command("train", {"role": "evaluation", **setting["evaluation_model"]}, root / "evaluation_model")]
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
                "evaluation_model": str(root / "evaluation_model"),
                "generator": str(folder),
            }
            options = {**setting["audit"], **parts, "attacks": attacks}
            found.append(_command("audit", options, root / f"{model}-audit-{name}"))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print or run the commands of a setting; the status of the first that fails, else 0."""
    parser = argparse.ArgumentParser(description="Print, or run, the commands of one setting of the paper.")
    parser.add_argument("setting", type=Path, help="one of the YAML files beside this script")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/paper"), help="default: outputs/paper")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these; default: all of the setting")
    parser.add_argument("--run", action="store_true", help="run them (days on a GPU); default: print them")
    options = parser.parse_args(argv)
    try:
        setting = load(options.setting)
        planned = commands(setting, options.output_dir, options.models)
    except (ValueError, OSError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    for note in setting["not_reproduced"]:
        print(f"# {note}")
    for command in planned:
        if options.run and command.finished:
            print(f"# done: {command.line}")
            continue
        print(command.line, flush=True)
        status = command.run() if options.run else 0
        if status:
            return status
    return 0


def _command(name: str, options: Mapping[str, Any], folder: Path) -> Command:
    words: list[str] = []
    for option, value in {**options, "output-dir": str(folder)}.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{option}", *(str(one) for one in values)]
    return Command(name, tuple(words), folder)


def _has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("checkpoint-*")) or any(folder.glob("undefended/*"))


if __name__ == "__main__":
    sys.exit(main())
