"""Command-line parser of an options dataclass: each field is an option."""

import argparse
import dataclasses
from collections.abc import Sequence
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from calor_hf.core.config_file import CONFIG, CONFIG_HELP, option_of, with_config
from calor_hf.core.own_errors import TRACEBACK_HELP
from calor_hf.core.suggestion import did_you_mean

T = TypeVar("T")


def parser_for(kind: type[Any], name: str, description: str) -> argparse.ArgumentParser:
    """Build the parser of a command from the fields of its options dataclass.

    A field ``foo_bar`` is the option ``--foo-bar``. Types: ``str``, ``int``, ``float``, ``Path``, ``bool`` (a switch,
    off by default) or ``Literal`` (choices), each also with ``None``; ``list``, ``tuple`` or ``Sequence`` for several
    values. A field without a default is required. Metadata of a field:

    - ``help``: text; the default is appended unless the text mentions it.
    - ``flags``: option strings instead of the field's name, such as ``("--revision", "--branch")``; empty for none.
    - ``positional``: True for an argument without a flag.
    - ``exclusive``: name of a group of which one option at most may be given.
    - ``one_of``: True for the options of which exactly one must be given.
    - ``rest``: True for the remaining arguments, in order.
    - ``choices``, ``metavar``, ``nargs``: as in :mod:`argparse`.
    - ``known``: names that the value may begin with, or the package that registers them.

    The recipe checks ``one_of`` and ``known``; :func:`~calor_hf.cli._usage.check_usage` does so before it is imported.

    Args:
        kind: Dataclass.
        name: Command, as after ``calor-hf``.
        description: Text at the top of ``--help``.
    """
    parser = argparse.ArgumentParser(
        prog=f"calor-hf {name}", description=description, epilog=TRACEBACK_HELP, allow_abbrev=False
    )
    add_options(parser, kind)
    if not passes_on(kind):
        parser.add_argument(CONFIG, default=argparse.SUPPRESS, metavar="FILE", help=CONFIG_HELP)
    return parser


def passes_on(kind: type[Any]) -> bool:
    """Return whether the remaining words, ``--config`` among them, are those of another command."""
    return any(field.metadata.get("nargs") == "..." for field in dataclasses.fields(kind))


def add_options(parser: argparse.ArgumentParser, kind: type[Any]) -> None:
    """Add an option for each field of a dataclass; see :func:`parser_for`."""
    hints = get_type_hints(kind)
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        metadata = field.metadata
        if "rest" in metadata or metadata.get("flags") == ():
            continue
        to: Any = parser
        if exclusive := metadata.get("exclusive"):
            to = groups.setdefault(exclusive, groups.get(exclusive) or parser.add_mutually_exclusive_group())
        given = {k: metadata[k] for k in ("choices", "metavar", "nargs") if k in metadata}
        settings = _settings(hints[field.name]) | given
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        text = str(metadata.get("help", "")).rstrip(".")
        told = default in (dataclasses.MISSING, None, "", [], ()) or isinstance(default, bool)
        if not told and "default" not in text.lower():
            shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else default
            text = f"{text} (default: {shown})"
        settings["help"] = text.replace("%", "%%")
        required = default is dataclasses.MISSING
        if not required:
            settings["default"] = default
        if metadata.get("positional"):
            to.add_argument(field.name, **({} if required else {"nargs": "?"}) | settings)
        else:
            flags = metadata.get("flags", (f"--{field.name.replace('_', '-')}",))
            to.add_argument(*flags, dest=field.name, required=required, **settings)


def _settings(hint: Any) -> dict[str, Any]:
    """Arguments of ``add_argument`` for a type."""
    kinds = [kind for kind in get_args(hint) or [hint] if kind is not NoneType]
    if get_origin(hint) in (list, tuple, Sequence):
        return {"nargs": "*", "type": get_args(hint)[0]}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if len(kinds) == 1 and kinds[0] is not hint:
        return _settings(kinds[0])
    return {"action": "store_true"} if hint is bool else {"type": str if len(kinds) > 1 else hint}


def dashed(argv: Sequence[str]) -> list[str]:
    """Arguments with ``--foo_bar`` spelled ``--foo-bar``; values stay as they are."""
    found = []
    for one in argv:
        _, equals, value = one.partition("=")
        found.append(f"{option_of(one)}{equals}{value}" if one.startswith("--") else one)
    return found


def read_options(kind: type[T], parser: argparse.ArgumentParser, argv: Sequence[str]) -> T:
    """Parse the arguments of a command into its options.

    Raises:
        ValueError: the dataclass refuses a value, or the file of ``--config`` is not readable.
        SystemExit: unknown options or values of another type (status 2), or ``--help``.
    """
    rest = [one.name for one in dataclasses.fields(kind) if "rest" in one.metadata]  # type: ignore[arg-type]
    if not passes_on(kind):
        argv = with_config(argv, parser)
    options, unknown = parser.parse_known_args(dashed(argv))
    if unknown and not rest:
        hint = did_you_mean(unknown[0].partition("=")[0], parser._option_string_actions)
        parser.error(f"unrecognized arguments: {' '.join(unknown)}.{hint}")
    return kind(**vars(options), **dict.fromkeys(rest, unknown))
