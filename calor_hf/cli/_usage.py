"""Usage errors, shown at once: options are checked by their source files before torch and transformers are imported.

The command itself parses its options again, and is the authority: a mistake that is not seen here is refused there.
"""

import ast
import re
from argparse import ArgumentTypeError
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field, make_dataclass
from typing import Any

from calor_hf.cli._options import parser_for, read_options
from calor_hf.core.config_file import value_of, with_config
from calor_hf.core.sources import SourceField, definition, registered, settings_fields, source_fields
from calor_hf.core.suggestion import did_you_mean, unknown

Fields = Mapping[str, SourceField]
_TRAIN = "calor_hf.recipes.train_arguments"
_NUMBERS: Mapping[frozenset[str], type] = {frozenset({kind.__name__}): kind for kind in (int, float)}
_TRUTH = ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0")  # as transformers reads them


def check_usage(name: str, words: Sequence[str]) -> None:
    """Refuse options that a command does not take, without importing it.

    Args:
        name: Command, as after ``calor-hf``.
        words: Words after it.

    Raises:
        SystemExit: an option is unknown or missing, or its value has another type or is not one of the choices.
        ValueError: an unknown method, or the file of ``--config`` cannot be read.
    """
    if {"-h", "--help", "--help-all"} & set(words):
        return
    given = with_config(words) if name == "train" else words
    try:
        if name == "train":
            title, fields = name, train_options(given)
        else:
            title, fields, words = command_options(name, words)
    except (LookupError, SyntaxError, OSError):  # sources that read differently, as of a later transformers
        return
    kind = stand_in(fields, name == "train")
    parser = parser_for(kind, title, "")
    if name == "train":
        parser.usage = "calor-hf train [options]"
    options = read_options(kind, parser, words)
    for option, one in fields.items():
        if (known := one.metadata.get("known")) and (value := getattr(options, option)):
            _check_known(option, value, registered(known) if isinstance(known, str) else known)
    one_of = [option for option, one in fields.items() if one.metadata.get("one_of")]
    if one_of and sum(getattr(options, option) is not None for option in one_of) != 1:
        raise ValueError(f"pass exactly one of {', '.join(one_of)}")
    if name == "plan":
        check_usage(options.command, options.options)
    if name == "compare":
        check_usage("train", options.train_options)


def command_options(name: str, words: Sequence[str]) -> tuple[str, Fields, Sequence[str]]:
    """Full name of a command, its options, and the words after the name."""
    module = f"calor_hf.cli.{name}"
    kinds = dict[str, str]()
    for node in ast.walk(definition(module, "COMMANDS" if name == "decoys" else "main")[1]):
        match node:
            case ast.Call(args=[ast.Constant(value=str(title)), _, ast.Name(id=kind), *_]):
                kinds[title] = kind
    if name not in kinds and words:
        name, words = f"{name} {words[0]}", words[1:]
        if name not in kinds:
            raise ValueError(unknown("command", name, kinds))
    return name, source_fields(module, kinds[name]), words


def train_options(words: Sequence[str]) -> Fields:
    """Options of `calor-hf train` with those of the chosen defense."""
    model = source_fields(_TRAIN, "ModelArguments")
    evaluation = value_of(words, "--role", "") == "evaluation"
    defense = value_of(words, "--defense", "none" if evaluation else model["defense"].default)
    if defense not in (names := registered("calor_hf.defenses")):
        raise ValueError(f"--defense: {unknown('defense', defense, names)}")
    fields = dict.fromkeys(settings_fields("calor_hf.defenses", defense), SourceField(frozenset({"str"}), False))
    for kind in ("DataArguments", "RunArguments", "CALoRTrainingArguments"):
        fields |= source_fields(_TRAIN, kind)
    return fields | model


def stand_in(fields: Fields, train: bool) -> type[Any]:
    """Return a dataclass with the fields that :func:`~calor_hf.cli._options.parser_for` needs.

    Args:
        fields: Fields by name.
        train: Read words as the parser of transformers does.
    """
    return make_dataclass("Options", [_field(*one, train) for one in fields.items()], kw_only=True)


def _field(name: str, source: SourceField, train: bool) -> tuple[str, Any, Any]:
    kinds = source.types & {"str", "int", "float", "bool", "dict", "Path"}
    metadata = dict(source.metadata)
    hint: Any = _NUMBERS.get(kinds, str)
    if source.types & {"list", "tuple", "Sequence"} and len(kinds) == 1:
        metadata.setdefault("nargs", "*")
    if "bool" in kinds and train:
        flag = name.replace("_", "-")
        metadata |= {"nargs": "?", "flags": (f"--{flag}", f"--no-{flag}") if source.default is True else (f"--{flag}",)}
        hint = _truth if len(kinds) == 1 else str
    elif "bool" in kinds:
        hint = bool
    return name, hint, field(metadata=metadata) if source.required else field(default=None, metadata=metadata)


def _truth(word: str) -> str:
    if word.lower() not in _TRUTH:
        raise ArgumentTypeError(f"expected true or false, got {word!r}")
    return word


def _check_known(option: str, value: str | Sequence[str], known: Collection[str]) -> None:
    """Raise ``ValueError`` for a name that is not known; several may have settings, as in ``gmi:steps=3``."""
    flag = f"--{option.replace('_', '-')}"
    if isinstance(value, str):
        if value not in known:
            raise ValueError(f"{flag} must be one of {', '.join(known)}, got {value}.{did_you_mean(value, known)}")
        return
    for name in (re.split("[@:]", word)[0] for word in value):
        if name not in known:
            raise ValueError(f"{flag}: {unknown(option.removesuffix('s'), name, known)}")
