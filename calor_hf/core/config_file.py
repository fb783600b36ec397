"""Options of a command in a YAML file: ``--config run.yaml``."""

import json
import re
from argparse import Action, ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calor_hf.core.files import read_yaml

CONFIG = "--config"
CONFIG_HELP = "YAML file of options, such as learning_rate: 0.001; options on the command line take precedence"
_SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def option_of(word: str) -> str:
    """Option string of a word of the command line or a key of the file: ``foo_bar=1`` is ``--foo-bar``."""
    return "--" + word.partition("=")[0].removeprefix("--").replace("_", "-")


def value_of(argv: Sequence[str], flag: str, default: str) -> str:
    """Return the last value given for an option, before the options are parsed."""
    for one, following in reversed(list(zip(argv, [*argv[1:], ""], strict=False))):
        _, equals, value = one.partition("=")
        if one.startswith("--") and option_of(one) == flag:
            return value if equals else following
    return default


def with_config(argv: Sequence[str], parser: ArgumentParser | None = None) -> list[str]:
    """Replace ``--config FILE`` by the options in the file, without those that ``argv`` gives.

    Values are read as they would be on the command line. A list becomes several values, and null leaves an option out.
    A mapping becomes words such as ``name=value`` if the option takes these, and JSON otherwise.

    Args:
        argv: Words of the command line.
        parser: Parser of the command: two names of one option are the same, a switch is given or left out, and an
            argument without a flag gets its value as its default. Without it each key is an option with a value.

    Raises:
        ValueError: the file is not a mapping from options to values, gives an option twice, or has no word for a value;
            or ``--config`` has no file or two.
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
    known = {} if parser is None else parser._option_string_actions
    typed = {option_of(word) for word in words if word.startswith("--")}
    typed |= {option.replace("--no-", "--", 1) for option in typed}
    given = typed | {known[option].dest for option in typed & known.keys()}
    in_file = set[str]()
    for key, value in read_yaml(Path(files[0]), "options to values, as in 'learning_rate: 0.001'").items():
        option = option_of(key)
        action = known.get(option)
        name = option if action is None else action.dest
        if name in in_file:
            raise ValueError(f"{CONFIG} {files[0]}: {key} is given twice; keep one")
        in_file.add(name)
        if value is None or {option, name} & given:
            continue
        if parser is not None and (positional := _positional(parser, key)):
            _set_default(positional, value)
            continue
        try:
            words += _words(option, action, value)
        except ValueError as error:
            raise ValueError(f"{CONFIG} {files[0]}: {key} {error}") from error
    return words


def _words(option: str, action: Action | None, value: Any) -> list[str]:
    """Words of the command line for an option of the file."""
    if action is not None and action.nargs == 0:
        if str(value).lower() not in _SWITCH:
            raise ValueError(f"must be true or false, got {value!r:.60}")
        return [option] if _SWITCH[value.lower()] else []
    if isinstance(value, dict) and action is not None and re.fullmatch(r"\w+=\w+", str(action.metavar)):
        pairs = [f"{name}={_text(one)}" for name, one in value.items()]
        return [option, *pairs] if action.nargs else [f"{option}={','.join(pairs)}"]
    if isinstance(value, dict):
        return [f"{option}={json.dumps(_typed(value))}"]
    if isinstance(value, list) and (action is None or action.nargs):
        return [option, *map(_word, value)]
    return [f"{option}={_text(value)}"]


def _text(value: Any) -> str:
    """One word for a value; the items of a list are separated by commas, as in ``size=3,4``."""
    return ",".join(map(_word, value)) if isinstance(value, list) else _word(value)


def _word(value: Any) -> str:
    if isinstance(value, dict | list):
        raise ValueError(f"must hold words or numbers, got {value!r:.60}")
    return "none" if value is None else str(value)


def _typed(value: Any) -> Any:
    """Values of a mapping for JSON: numbers and truth values instead of their words."""
    if isinstance(value, dict):
        return {name: _typed(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_typed(one) for one in value]
    try:
        return value if value is None else json.loads(value)
    except ValueError:
        return _SWITCH.get(value.lower(), value)


def _positional(parser: ArgumentParser, key: str) -> Action | None:
    """Argument without a flag, by its name."""
    return next((one for one in parser._actions if not one.option_strings and one.dest == key.replace("-", "_")), None)


def _set_default(action: Action, value: Any) -> None:
    """Let the command line leave an argument out; what it gives still counts."""
    action.default, action.required = value, False
    action.nargs = action.nargs or "?"
