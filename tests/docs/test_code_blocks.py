"""Commands that README.md and the guides tell a reader to type: read by the real parsers, and run in slow tests."""

import ast
import importlib
import shlex
from typing import Any

import pytest

from tests.docs.blocks import FILES, ROOT, Block, blocks, check, commands, python_blocks, split

COMMANDS = [(file, words) for file in FILES for words in commands(file)]
PYTHON = [block for file in FILES for block in python_blocks(file)]
# CONTRIBUTING.md: tests/test_contributing.py makes files of its blocks, and runs them.
ELSEWHERE = {"CONTRIBUTING.md": "calor_hf.defenses.confidence_penalty"}


def imported(source: str) -> list[tuple[str, str | None]]:
    """(module, name or None) of every import."""
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.module or "", alias.name) for alias in node.names]
    return found


def find(module: str, name: str | None) -> Any:
    """Imported names; ImportError or AttributeError if it is not there."""
    there = importlib.import_module(module)
    if name is None:
        return there
    return getattr(there, name) if hasattr(there, name) else importlib.import_module(f"{module}.{name}")


def test_blocks_are_found_where_they_are() -> None:
    text = "a\n```python\nx = 1\n```\n1. b\n   ```\n   calor-hf list plg \\\n       # why\n   make  demo # c\n   ```\n"
    first, second = blocks("made_up.md", text)
    assert first == Block("made_up.md", 3, "python", "x = 1")
    assert second.language == ""
    assert list(split("calor-hf train \\\n  --rank 4 ...  # why\n\nmake demo # c")) == [
        ["calor-hf", "train", "--rank", "4"],
        ["make", "demo"],
    ]
    assert list(split("for A in x y; do\n  calor-hf train --defense $A\ndone")) == [
        ["calor-hf", "train", "--defense", "x"]
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("calor-hf tarin", "has no command"),
        ("calor-hf train --rnak 3", "--rnak"),
        ("calor-hf compare --seeds 1 --rnak 3", "--rnak"),
        ("calor-hf audit --target x --budgets demo --images 3 --nothing", "does not know --budgets"),
        ("python -m examples.paper prepare lfw --source a --output-dir b", "invalid choice: 'lfw'"),
        ("accelerate launch --module calor_hf.cli.prior --stepps 3", "--stepps"),
        ("accelerate launch examples/train_calor.py --rnak 3", "--rnak"),
        ("python examples/train_callor.py", "no file"),
        ("python -m benchmarks speed", "unknown benchmarks"),
        ("python -m benchmarks.every_attack look --output-dir a", "invalid choice: 'look'"),
        ("python -m examples.paper rank_swep", "unknown study or command"),
        ("python -m examples.paper rank_sweep --rnak 3", "--rnak"),
        ("make coffee", "no target coffee"),
        ("pip install calor-hf[all]", "no extra all"),
        ("rm -rf outputs", "no one knows"),
    ],
)
def test_wrong_commands_are_refused(line: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check(shlex.split(line))


@pytest.mark.parametrize(("file", "words"), COMMANDS, ids=[f"{file}-{shlex.join(w)[:60]}" for file, w in COMMANDS])
def test_every_command_is_understood(file: str, words: list[str]) -> None:
    check(words)


@pytest.mark.parametrize("block", PYTHON, ids=[f"{block.file}:{block.line}" for block in PYTHON])
def test_every_python_block_compiles_and_finds_what_it_imports(block: Block) -> None:
    compile(block.text, f"{block.file}:{block.line}", "exec")
    for module, name in imported(block.text):
        if module != ELSEWHERE.get(block.file):
            find(module, name)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_all_blocks_are_looked_at() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/audit.md", "docs/own_data.md"} <= set(FILES)
    languages = {block.language for file in FILES for block in blocks(file)}
    assert languages <= {"", "bash", "sh", "python", "py", "json", "text", "ts", "yaml"}
    assert len(COMMANDS) > 50
