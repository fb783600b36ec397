"""Options as the source files tell them: those of the commands' own parsers, and each of them in a file of --config."""

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from calor_hf.cli._command import Command
from calor_hf.cli._options import parser_for
from calor_hf.cli._usage import check_usage, command_options, stand_in, train_options
from calor_hf.cli.main import COMMANDS
from calor_hf.core.config_file import with_config
from calor_hf.defenses import DEFENSES
from calor_hf.recipes import train_arguments

TITLES = [name for name in COMMANDS if name not in ("train", "decoys")]
TITLES += ["decoys deal", "decoys check", "decoys accuracy"]
Option = tuple[frozenset[str], str, Any, Any, Any, bool]


def command(title: str) -> Command:
    name, _, below = title.partition(" ")
    module = importlib.import_module(f"calor_hf.cli.{name}")
    return module.COMMANDS[below] if below else module.main.__self__  # type: ignore[no-any-return]


def options(parser: argparse.ArgumentParser) -> Iterator[Option]:
    for one in parser._actions:
        kind = None if one.type is Path else one.type or str
        choices = None if one.choices is None else tuple(one.choices)
        yield frozenset(one.option_strings), one.dest, one.nargs, None if kind is str else kind, choices, one.required


@pytest.mark.parametrize("title", TITLES)
def test_sources_tell_the_options_of_a_command(title: str) -> None:
    _, fields, words = command_options(title.split()[0], title.split()[1:])
    assert not words
    found = parser_for(stand_in(fields, train=False), title, "")
    assert list(options(found)) == list(options(parser_for(command(title).options, title, "")))


@pytest.mark.parametrize("defense", DEFENSES.names())
def test_sources_tell_the_options_of_train(defense: str) -> None:
    found = parser_for(stand_in(train_options(["--defense", defense]), train=True), "train", "")
    known, heavy = found._option_string_actions, train_arguments._parser(defense)._option_string_actions
    assert set(known) == {name for name in heavy if "_" not in name} - {"--help-all"}
    for name, action in known.items():
        same = heavy[name]
        assert same.nargs == 0 or action.type in (str, same.type) or "bool" in str(same.type)
        if action.choices:
            assert list(action.choices) == list(same.choices)


def test_right_use_passes_and_what_cannot_be_read_is_left_to_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    check_usage("train", ["--num_train_epochs=2", "--bf16", "--no-adapt-freeze-batch-norm", "--rank", "auto"])
    check_usage("train", ["--role", "evaluation", "--tf32", "False", "--lr-drop-epochs", "1", "2", "--fsdp"])
    check_usage("compare", ["--defenses", "mid", "calor:rank=8", "--learning-rate", "1e-4"])
    check_usage("plan", ["--processes", "2", "audit", "some/model", "--attacks", "plg@calor", "gmi:steps=3"])
    check_usage("robustness", ["--help", "--tragte"])
    monkeypatch.setattr("calor_hf.cli._usage._TRAIN", "calor_hf.recipes.not_there")
    check_usage("train", ["--rnak", "3"])


def words_of(action: argparse.Action) -> list[str]:
    """Words of an option and a value; for a positional argument the value."""
    value = list(action.choices)[-1] if action.choices else "3" if action.type in (int, float) else "word"
    count = action.nargs if isinstance(action.nargs, int) else 2 if action.nargs in ("*", "+") else 1
    return [*action.option_strings[:1], *[value] * count]


@pytest.mark.parametrize("title", [one for one in TITLES if one != "plan"])
def test_every_option_can_be_in_the_file(title: str, tmp_path: Path) -> None:
    file, kind = tmp_path / "run.yaml", command(title).options
    for index, action in enumerate(parser_for(kind, title, "")._actions):
        if action.dest in ("help", "config"):
            continue
        parser = parser_for(kind, title, "")
        others = [one for at, one in enumerate(parser._actions) if one.required and at != index]
        given = sorted([*others, parser._actions[index]], key=lambda one: (bool(one.option_strings), one.dest))
        typed = parser.parse_args([word for one in given for word in words_of(one)])
        words = words_of(action)
        key, values = (words[0][2:], words[1:]) if action.option_strings else (action.dest, words)
        content = True if action.nargs == 0 else values if len(values) > 1 else values[0]
        file.write_text(yaml.safe_dump({key: content}))
        in_file = with_config([*(word for one in others for word in words_of(one)), "--config", str(file)], parser)
        assert parser.parse_args(in_file) == typed, action.dest
