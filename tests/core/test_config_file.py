"""Options in a YAML file."""

import argparse
from pathlib import Path

import pytest

from calor_hf.core.config_file import with_config


def words(text: str, folder: Path, *typed: str, parser: argparse.ArgumentParser | None = None) -> list[str]:
    file = folder / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return with_config([*typed, "--config", str(file)], parser)


def test_values_lists_null_and_booleans(tmp_path: Path) -> None:
    text = "learning_rate: 0.001\nattacks: [plg, 'ppa:steps=50']\nseed: null\nbf16: true\nuse-cpu: false\nname: ''\n"
    assert words(text, tmp_path, "folder", "--rank", "8") == [
        "folder", "--rank", "8", "--learning-rate=0.001", "--attacks", "plg", "ppa:steps=50", "--bf16=true",
        "--use-cpu=false", "--name=",
    ]  # fmt: skip


def test_the_command_line_counts_more(tmp_path: Path) -> None:
    assert words("rank: 4\nseed: 3\n", tmp_path, "--rank=8") == ["--rank=8", "--seed=3"]
    assert words("head_only: true\n", tmp_path, "--no_head_only") == ["--no_head_only"]
    assert words("metrics: [fid, kid]\n", tmp_path, "--metrics", "fid") == ["--metrics", "fid"]


def test_switches_and_second_names_of_a_parser(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--revision", "--branch")
    text = "fast: true\nslow: false\nrevision: a\n"
    assert words(text, tmp_path, parser=parser) == ["--fast", "--revision=a"]
    assert words(text, tmp_path, "--branch", "b", parser=parser) == ["--branch", "b", "--fast"]


def test_words_stay_as_they_are_written(tmp_path: Path) -> None:
    text = "a: no\nb: 1e-4\nc: 007\nd: 2026-01-02\ne: 1.10\n"
    assert words(text, tmp_path) == ["--a=no", "--b=1e-4", "--c=007", "--d=2026-01-02", "--e=1.10"]


def test_mappings_are_words_or_json_and_arguments_without_a_flag_are_defaults(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("reports", nargs="*")
    parser.add_argument("--settings", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--arguments", metavar="NAME=VALUE")
    parser.add_argument("--plan")
    text = """
model: a
reports: [b, c]
settings: {x: 1, y: [2, 3], z: null}
arguments: {r: 4, s: yes}
plan: {t: 1e-3, u: [yes, v]}
"""
    found = words(text, tmp_path, parser=parser)
    assert found == [
        "--settings",
        "x=1",
        "y=2,3",
        "z=none",
        "--arguments=r=4,s=yes",
        '--plan={"t": 0.001, "u": [true, "v"]}',
    ]
    options = parser.parse_args(found)
    assert (options.model, options.reports) == ("a", ["b", "c"])
    assert parser.parse_args(["d", *found]).model == "d"


def test_without_a_file_nothing_changes() -> None:
    assert with_config(["a", "--rank", "8"]) == ["a", "--rank", "8"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank\n", "must map options to values, as in 'learning_rate: 0.001', got 'rank'"),
        ("a: [[1]]\n", r"run\.yaml: a must hold words or numbers, got \['1'\]"),
        ("? [1]\n: 2\n", "is no YAML"),
        ("null: 2\n", "must map options to values"),
        ("rank: 1\nrank: 2\n", "rank is given twice"),
        ("head_init: svd\nhead-init: random\n", "head-init is given twice; keep one"),
        ("a: [1\n", "is no YAML"),
        ("!!python/object/apply:os.getcwd []\n", "is no YAML"),
    ],
)
def test_other_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        words(text, tmp_path)


def test_one_file_that_exists(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes one file, got a and b"):
        with_config(["--config", "a", "--config=b"])
    with pytest.raises(ValueError, match="takes one file, got none"):
        with_config(["--config"])
    with pytest.raises(FileNotFoundError, match=r"run\.yaml"):
        with_config(["--config", str(tmp_path / "run.yaml")])
