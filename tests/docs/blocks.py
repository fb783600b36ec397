"""Fenced code blocks of the Markdown files, their command lines, and the parsers that these are meant for."""

import argparse
import configparser
import contextlib
import io
import re
import runpy
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from calor_hf.cli.main import COMMANDS
from calor_hf.cli.main import main as calor_hf
from examples.paper.__main__ import main as paper
from examples.paper.studies import STUDIES

ROOT = Path(__file__).parents[2]
FILES = sorted(
    file.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "CONTRIBUTING.md", "SKILL.md", "docs/*.md", "docs/results/*.md", "examples/**/*.md")
    for file in ROOT.glob(pattern)
)
_FENCE = re.compile(r"^ *```(?P<language>[\w-]*)\s*$")
_INLINE = re.compile(r"`(calor-hf [^`\n]* --[^`\n]*)`")
_LOOP = re.compile(r"for (\w+) in (\S+) .*; do$")
PASSES_ON = ("compare",)  # what it does not know is for `train`
OTHER_PROGRAMS = ("pre-commit", "source", "cd", "git", "docker")
"""They are no one's in this repository, so that their options cannot be checked."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        file: Relative to the repository.
        line: Number of its first line.
        language: After the fence; empty for the shell.
        text: Without the indentation of a list.
    """

    file: str
    line: int
    language: str
    text: str


def blocks(file: str, text: str | None = None) -> list[Block]:
    """Fenced blocks of a Markdown file, in order."""
    lines = ((ROOT / file).read_text(encoding="utf-8") if text is None else text).splitlines()
    found, begin, language = [], -1, ""
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if fence is None:
            continue
        if begin < 0:
            begin, language = number + 1, fence["language"]
        else:
            inside = textwrap.dedent("\n".join(lines[begin:number]))
            found.append(Block(file, begin + 1, language, inside))
            begin = -1
    return found


def python_blocks(file: str) -> list[Block]:
    return [block for block in blocks(file) if block.language in ("python", "py")]


def commands(file: str) -> list[list[str]]:
    """Words of every command in the shell blocks of a file, and of those in its text that have options."""
    found = [words for block in blocks(file) if block.language in ("", "bash", "sh") for words in split(block.text)]
    text = (ROOT / file).read_text(encoding="utf-8")
    return found + [words for inline in _INLINE.findall(text) for words in split(inline)]


def split(text: str) -> Iterator[list[str]]:
    """Words of each command: lines joined, comments and dots cut off, a loop read once with its first value."""
    value = {}
    for line in text.replace("\\\n", " ").splitlines():
        loop = _LOOP.match(line.strip())
        if loop:
            value[loop[1]] = loop[2]
            continue
        for name, first in value.items():
            line = line.replace(f"${name}", first)
        words = [word for word in shlex.split(line, comments=True) if word not in ("...", "…")]
        if words and words != ["done"]:
            yield words


def check(words: Sequence[str]) -> None:
    """Let the parser that a command is meant for read it.

    Raises:
        ValueError: the parser refuses it, or no one knows the command.
    """
    program, *rest = words
    if program == "accelerate" and rest[:1] == ["launch"]:
        from accelerate.commands.launch import launch_command_parser

        options = launch_command_parser().parse_args(rest[1:])
        _check_script(options.training_script, options.training_script_args, options.module)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        options = get_args_parser().parse_args(rest)
        _check_script(options.training_script, options.training_script_args, options.module)
    elif program == "calor-hf":
        _check_calor_hf(rest)
    elif program in ("python", "python3"):
        module = rest[:1] == ["-m"]
        _check_script(*((rest[1], rest[2:]) if module else (rest[0], rest[1:])), module)
    elif program == "make":
        _check_make(rest)
    elif program == "hf":
        _check_hf(rest)
    elif program == "uv":
        check(rest[rest.index("python") :])
    elif program == "pip":
        _check_extras(rest)
    elif program.startswith(".ci/"):
        _require((ROOT / program).is_file(), f"no file {program}")
    else:
        _require(program in OTHER_PROGRAMS, f"no one knows the command {program}: {shlex.join(words)}")


def read_options(call: Callable[[], Any]) -> tuple[argparse.Namespace, list[str]]:
    """Options that the first parser in ``call`` reads, and words it does not know; nothing after it is run."""
    original = argparse.ArgumentParser.parse_known_args

    class ReadError(BaseException):  # no one's `except Exception`
        pass

    found: list[tuple[argparse.Namespace, list[str]]] = []

    def stop(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        found.append(original(parser, *args, **kwargs))
        raise ReadError

    said = io.StringIO()
    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop), contextlib.redirect_stderr(said):
        try:
            call()
        except ReadError:
            return found[-1]
        except SystemExit as end:
            raise ValueError(said.getvalue() or str(end)) from None
    raise ValueError(said.getvalue() or "no parser was asked")


def _check_calor_hf(words: Sequence[str]) -> None:
    if list(words) in (["--help"], ["--version"]):
        return
    _require(bool(words) and words[0] in COMMANDS, f"calor-hf has no command {words[:1]}")
    if list(words[1:]) == ["--help"]:
        return
    options, unknown = read_options(lambda: calor_hf(words))
    if words[0] == "plan":
        _check_calor_hf([options.command, *options.options])
    if unknown and words[0] in PASSES_ON:
        _, unknown = read_options(lambda: calor_hf(["train", *unknown]))
    _require(not unknown, f"calor-hf {words[0]} does not know {' '.join(unknown)}")


def _check_script(name: str, words: Sequence[str], module: bool) -> None:
    if module and name.startswith("calor_hf.cli."):
        _check_calor_hf([name.rpartition(".")[2], *words])
        return
    if module and name == "benchmarks":
        from benchmarks.__main__ import LONG, SHORT

        _require(set(words) <= {*SHORT, *LONG}, f"unknown benchmarks in {' '.join(words)}")
        return
    if module and name == "sphinx":
        return
    if module and name == "examples.paper":
        _check_paper(words)
        return
    file = ROOT / (name.replace(".", "/") + ".py" if module else name)
    _require(file.is_file(), f"no file {file.name} for {name}")
    if not re.search(r"parse_args|parse\(sys\.argv|calor_hf\.cli", file.read_text(encoding="utf-8")):
        return  # it takes its words as they are
    with mock.patch.object(sys, "argv", [str(file), *words]):
        _, unknown = read_options(lambda: runpy.run_path(str(file), run_name="__main__"))
    _require(not unknown, f"{name} does not know {' '.join(unknown)}")


def _check_hf(words: Sequence[str]) -> None:
    from huggingface_hub.cli.hf import app

    command: Any = app
    context, rest = None, list(words)
    while True:
        try:
            context = command.make_context(command.name, rest, parent=context)
        except Exception as error:  # of typer's own copy of click, or of click
            raise ValueError(f"hf {shlex.join(words)}: {error}") from None
        if not hasattr(command, "resolve_command"):
            break
        _, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    if "script" in context.params:
        check(["python", context.params["script"], *(context.params["script_args"] or ())])


def _check_paper(words: Sequence[str]) -> None:
    if not words:
        return
    if words[0] == "calor-hf":
        _check_calor_hf(words[1:])
        return
    _, unknown = read_options(lambda: paper(words))
    if unknown and words[0] in STUDIES.names():
        _, unknown = read_options(lambda: calor_hf(["train", *unknown]))
    _require(not unknown, f"examples.paper {words[0]} does not know {' '.join(unknown)}")


def _check_make(words: Sequence[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    wanted = {word for word in words if "=" not in word}
    _require(wanted <= targets, f"make has no target {', '.join(sorted(wanted - targets))}")


def _check_extras(words: Sequence[str]) -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    for extras in re.findall(r"calor-hf\[([\w,]+)\]", " ".join(words)):
        unknown = set(extras.split(",")) - set(settings["options.extras_require"])
        _require(not unknown, f"setup.cfg has no extra {', '.join(unknown)}")


def _require(fine: bool, otherwise: str) -> None:
    if not fine:
        raise ValueError(otherwise)
