"""`calor-hf train --help` and `--config`: short, complete, and the same options in a file as on the command line."""

import json
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments
from transformers.hf_argparser import string_to_bool

from calor_hf.core.config_file import with_config
from calor_hf.defenses import DEFENSES
from calor_hf.recipes import train_arguments
from calor_hf.recipes.train_arguments import parse
from calor_hf.training.arguments import CALoRTrainingArguments


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        parse(words)
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("defense", DEFENSES.names())
def test_help_has_a_line_for_each_own_option_on_two_screens(
    defense: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = shown(capsys, "--defense", defense, "--help").splitlines()
    assert len(lines) <= 100  # two screens of 50
    assert max(map(len, lines)) <= 100
    options = [line.split()[0] for line in lines if line.startswith("  --")]
    assert len(options) == len(set(options))
    assert not [option for option in options if "_" in option]
    inherited = {one.name for one in fields(TrainingArguments)}
    own = [one.name for one in fields(CALoRTrainingArguments) if one.name not in inherited]
    own += [one.name for one in fields(DEFENSES.get(defense).config_class)]
    for kind in (train_arguments.ModelArguments, train_arguments.DataArguments):
        own += [one.name for one in fields(kind)]
    assert {f"--{name.replace('_', '-')}" for name in own} <= {*options, "--command"}


def test_help_all_has_every_option_once(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--help-all")
    for action in train_arguments._parser("calor")._actions:
        if action.dest not in ("help", "help_all"):
            assert f"\n  --{action.dest.replace('_', '-')}" in text, action.dest
    assert "--num_train_epochs" not in text


def other(action: Any) -> Any:
    """A value of an option that is not its default."""
    if action.choices:
        return next(one for one in action.choices if one != action.default)
    if action.type is string_to_bool:
        return not action.default
    kind = action.type if action.type in (int, float) else str
    enum = isinstance(action.type, type) and issubclass(action.type, Enum)
    value = list(action.type)[-1].value if enum else kind(3)
    return [value, value] if action.nargs in ("+", "*") else value


def word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def test_every_option_can_be_in_the_file(tmp_path: Path) -> None:
    parser = train_arguments._parser("calor")
    given = {action.dest: other(action) for action in reversed(parser._actions)}
    for name in ("help", "help_all", "config"):
        del given[name]
    for one in fields(CALoRTrainingArguments):
        if "dict" in str(one.type):
            given[one.name] = {"ratio": 0.5, "cycles": 2, "on": True, "nested": {"names": ["a"]}}
    if "parallelism_config" in given:
        given["parallelism_config"] = {"dp_replicate_size": 2}
    assert len(given) > 100
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    words = list[str]()
    for name, value in given.items():
        words += [f"--{name}", *map(word, value)] if isinstance(value, list) else [f"--{name}={word(value)}"]
    from_file = with_config(["--config", str(tmp_path / "run.yaml")], parser)
    assert parser.parse_args(from_file) == parser.parse_args(words)


@pytest.mark.parametrize(
    ("content", "name", "value"),
    [
        ("lr_scheduler_kwargs: {min_lr: 1e-6}", "lr_scheduler_kwargs", '{"min_lr": 1e-06}'),
        ("accelerator_config: {even_batches: no}", "accelerator_config", '{"even_batches": false}'),
        ("optim_args: {r: 64, scale: 2.0}", "optim_args", "r=64,scale=2.0"),
        ("splits: {train: a, test: b}", "splits", ["train=a", "test=b"]),
        ("defense_settings: {rank: 3, low_rank: true}", "defense_settings", ["rank=3", "low_rank=true"]),
        ("run_name: 2026-01-02", "run_name", "2026-01-02"),
        ("model_revision: 0123e4", "model_revision", "0123e4"),
        ("eval_strategy: no", "eval_strategy", "no"),
        ("learning_rate: 1e-4", "learning_rate", 1e-4),
        ("dataloader_pin_memory: no", "dataloader_pin_memory", False),
    ],
)
def test_words_and_mappings_of_the_file(content: str, name: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(content)
    parser = train_arguments._parser("calor")
    options = parser.parse_args(with_config(["--config", str(tmp_path / "run.yaml")], parser))
    assert getattr(options, name) == value


def test_a_run_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("defense: loft\nrank: 3\nnum_train_epochs: 2\nlearning_rate: 1e-4\n")
    model, _, run, training = parse(["--config", str(tmp_path / "run.yaml"), "--num-train-epochs", "5"])
    assert (model.defense, model.defense_settings) == ("loft", ["rank=3"])
    assert (training.num_train_epochs, training.learning_rate) == (5, 1e-4)
    assert run.command == ["--num-train-epochs", "5", "--defense=loft", "--rank=3", "--learning-rate=1e-4"]
    (tmp_path / "run.yaml").write_text("defense: bido\nlayers: [conv1, conv2]\n")
    assert parse(["--config", str(tmp_path / "run.yaml")])[0].defense_settings == ["layers=conv1,conv2"]
    (tmp_path / "run.yaml").write_text("rnak: 3\n")
    with pytest.raises(ValueError, match=r"unrecognized arguments: --rnak=3"):
        parse(["--config", str(tmp_path / "run.yaml")])
