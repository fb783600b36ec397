"""The parser that an options dataclass gives, and how commands end."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from calor_hf.cli._command import Command
from calor_hf.cli._options import parser_for, read_options


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of a made-up command."""

    model: str = field(metadata={"positional": True, "help": "100 % of it"})
    output_dir: Path = field(metadata={"help": "where to"})
    format: str = field(default="onnx", metadata={"choices": ("onnx", "torch"), "help": "kind of file."})
    image_size: int | None = None
    budget: str | float = "paper"
    seeds: list[int] = field(default_factory=lambda: [42, 43], metadata={"nargs": "+", "help": "of trainings"})
    seed: int = field(default=0, metadata={"help": "of draws"})
    launcher: str = ""
    settings: tuple[str, ...] = ()
    branch: str | None = field(default=None, metadata={"flags": ("--revision", "--branch")})
    private: bool = field(default=False, metadata={"exclusive": "who"})
    public: bool = field(default=False, metadata={"exclusive": "who"})

    def __post_init__(self) -> None:
        if self.image_size == 0:
            raise ValueError("--image-size must be >= 1, got 0")


def read(*words: str) -> Options:
    return read_options(Options, parser_for(Options, "try", "Try it."), ["m", "--output-dir", "out", *words])


def test_fields_are_options() -> None:
    assert read() == Options(model="m", output_dir=Path("out"))
    found = read("--image_size=8", "--seeds", "1", "--settings", "a_b=c", "--branch", "x_y", "--public")
    assert (found.image_size, list(found.seeds), list(found.settings)) == (8, [1], ["a_b=c"])
    assert (found.branch, found.private, found.public) == ("x_y", False, True)
    assert read("--output_dir", "a_b").output_dir == Path("a_b")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "tf"], "argument --format: invalid choice: 'tf'"),
        (["--image-size", "x"], "argument --image-size: invalid int value: 'x'"),
        (["--private", "--public"], "not allowed with argument"),
        (["--image", "8"], "unrecognized arguments: --image 8"),
        (["--image_sise=8"], "--image-sise=8. Did you mean '--image-size'?"),
    ],
)
def test_what_no_field_takes_is_a_usage_error(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        read(*words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_help_shows_dashed_names_and_defaults() -> None:
    shown = " ".join(parser_for(Options, "try", "Try it.").format_help().split())
    assert "--output-dir OUTPUT_DIR" in shown
    assert "--output_dir" not in shown
    assert "100 % of it" in shown
    assert "kind of file (default: onnx)" in shown
    assert "of trainings (default: 42 43)" in shown
    assert "of draws (default: 0)" in shown
    assert "(default: )" not in shown


class OddError(RuntimeError):
    pass


def ends_with(error: type[BaseException], message: str) -> Callable[[argparse.Namespace], None]:
    def run(options: argparse.Namespace) -> None:
        raise error(message) if message else error

    return run


@pytest.mark.parametrize(
    ("error", "message", "status", "shown"),
    [
        (ValueError, "no such thing", 2, "calor-hf try: no such thing\n"),
        (FileNotFoundError, "no file", 2, "calor-hf try: no file\n"),
        (ModuleNotFoundError, "no library", 2, "calor-hf try: no library\n"),
        (
            MemoryError,
            "too",
            2,
            "calor-hf try: not enough memory (too); pass a smaller batch, or use a machine with more\n",
        ),
        (FloatingPointError, "nan", 1, "calor-hf try: nan\n"),
        (OddError, "odd", 3, "calor-hf try: odd\n"),
        (KeyboardInterrupt, "", 130, "\nStopped.\nCall it again.\n"),
        (KeyboardInterrupt, "stopped at step 3", 130, "\nstopped at step 3\nCall it again.\n"),
    ],
)
def test_errors_have_a_status_and_a_line(
    error: type[BaseException], message: str, status: int, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Command("try", "", Options, ends_with(error, message), "Call it again.", {OddError: 3})
    assert command.main(["m", "--output-dir", "out"]) == status
    assert capsys.readouterr().err == shown


def test_refused_values_and_mistakes_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    command = Command("try", "", Options, ends_with(AssertionError, "a bug"))
    assert command.main(["m", "--output-dir", "out", "--image-size", "0"]) == 2
    assert capsys.readouterr().err == "calor-hf try: --image-size must be >= 1, got 0\n"
    assert command.main(["m", "--output-dir", "out"]) == 70
    assert "stopped by a fault in calor_hf" in capsys.readouterr().err
