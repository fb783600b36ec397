"""Options of a command in a YAML file: ``--config run.yaml``."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

CONFIG = "--config"
CONFIG_HELP = "YAML file of options, such as learning_rate: 0.001; options on the command line count more"


def option_of(word: str) -> str:
    """Option string of a word of the command line or a key of the file: ``foo_bar=1`` is ``--foo-bar``."""
    return "--" + word.partition("=")[0].removeprefix("--").replace("_", "-")


def with_config(argv: Sequence[str], actions: Mapping[str, argparse.Action] | None = None) -> list[str]:
    """Replace ``--config FILE`` by the options in the file, without those that ``argv`` gives.

    A list becomes several values, null leaves an option out, and the value of a boolean is spelled out.

    Args:
        argv: Words of the command line.
        actions: Options of the parser by their names: two names of one are the same, and a boolean leaves an option
            without a value out if it is false. Without it each boolean is an option with a value.

    Raises:
        ValueError: the file is not a mapping from options to values, or ``--config`` has no file or two.
        OSError: the file cannot be read.
    """
    words, files = list[str](), list[str]()
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.partition("=")
        if name == CONFIG:
            files.append(value if equals else next(rest, ""))
        else:
            words.append(word)
    if not files:
        return words
    if len(files) > 1 or not files[0]:
        raise ValueError(f"{CONFIG} takes one file, got {' and '.join(files) or 'none'}")
    known = actions or {}
    typed = {option_of(word) for word in words if word.startswith("--")}
    typed |= {option.replace("--no-", "--", 1) for option in typed}
    given = {known[option].dest for option in typed & known.keys()}
    for key, value in _options_in(Path(files[0])).items():
        option = option_of(key)
        action = known.get(option)
        if value is None or option in typed or (action is not None and action.dest in given):
            continue
        if isinstance(value, bool) and action is not None and action.nargs == 0:
            words += [option] if value else []
        elif isinstance(value, list):
            words += [option, *map(str, value)]
        else:
            words.append(f"{option}={str(value).lower() if isinstance(value, bool) else value}")
    return words


def _options_in(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{CONFIG} {file} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{CONFIG} {file} must map options to values, as in 'learning_rate: 0.001', got {found!r:.60}")
    for key, value in found.items():
        parts = value if isinstance(value, list) else [value]
        if not isinstance(key, str) or any(isinstance(part, dict | list) for part in parts):
            raise ValueError(f"{CONFIG} {file}: {key} must be the name of an option, with a value or a list of values")
    return found
