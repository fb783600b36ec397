"""A draw depends on its key alone."""

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calor_hf.core.seeding import named_rng, torch_seed

ROOT = Path(__file__).parents[2]
SEEDS, NAMES, INDICES = (0, 1, 42), ("tests/a", "tests/b"), (0, 1, 2, "a", "b")
KEYS: list[tuple[Any, ...]] = [*itertools.product(SEEDS, NAMES), *itertools.product(SEEDS, NAMES, INDICES),
                               *itertools.product(SEEDS, NAMES, INDICES, INDICES)]  # fmt: skip
CALLS = ("named_rng", "torch_seed", "normal", "uniform", "_view")  # the functions that are given a stream's name


def draw(*key: Any) -> list[float]:
    return [float(number) for number in named_rng(*key).random(4)]


def test_same_key_same_numbers() -> None:
    assert draw(42, "tests/a", 3, 7) == draw(42, "tests/a", np.int64(3), 7)


def test_different_keys_differ_and_their_order_counts() -> None:
    assert len({tuple(draw(*key)) for key in KEYS}) == len(KEYS)
    assert len({torch_seed(*key) for key in KEYS}) == len(KEYS)
    assert draw(1, "tests/a", 2, 3) != draw(1, "tests/a", 3, 2)


def test_every_use_has_a_name_of_its_own() -> None:
    """``part/purpose``, once in the whole repository, in the part that the name says."""
    found: dict[str, list[str]] = {}
    for part in (*sorted((ROOT / "calor_hf").iterdir()), ROOT / "examples", ROOT / "benchmarks"):
        for file in sorted(part.rglob("*.py")):
            for name in stream_names(ast.parse(file.read_text(encoding="utf-8"))):
                assert name.startswith(f"{part.name}/"), f"{file.name} draws from {name}"
                found.setdefault(name, []).append(file.name)
    assert {name: files for name, files in found.items() if len(files) > 1} == {}
    assert len(found) > 50
    assert len({tuple(draw(0, name)) for name in found}) == len(found)


def stream_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            if function in CALLS:
                yield from texts[:1]  # a key may hold others


def test_the_check_would_find_a_name_used_twice() -> None:
    tree = ast.parse('named_rng(seed, "a/b", "key")\ndraws.uniform("a/b", 3)\nother("c/d")')
    assert list(stream_names(tree)) == ["a/b", "a/b"]


def test_streams_of_different_names_are_unrelated() -> None:
    # 4 standard errors of a correlation over 10,000 pairs.
    streams = [named_rng(0, name).random(10_000) for name in ("tests/a", "tests/b", "tests/a/b")]
    correlations = np.asarray(np.corrcoef(streams))
    assert np.abs(correlations[np.triu_indices(3, 1)]).max() < 0.04


def test_draws_do_not_depend_on_what_was_drawn_before() -> None:
    forwards = {key: draw(*key) for key in KEYS}
    np.random.default_rng().random(10)
    interrupted = named_rng(1, "tests/a", 1)
    backwards = {key: draw(*key) for key in reversed(KEYS)}
    interrupted.random()
    assert forwards == backwards


def test_streams_of_neighboring_keys_are_unrelated() -> None:
    # 4 standard errors of a correlation over 10,000 pairs.
    first, second = (named_rng(0, "tests/a", 0, index).random(10_000) for index in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.04


def test_numbers_stay_what_they_were() -> None:
    # Resuming a run of an older version must draw the same; a change here breaks it.
    assert named_rng(0, "tests/a", 0).integers(0, 1_000_000, 3).tolist() == [505_080, 701_265, 147_712]


def test_negative_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        named_rng(-1, "tests/a")
    with pytest.raises(ValueError, match="non-negative"):
        named_rng(0, "tests/a", -1)
