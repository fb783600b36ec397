import functools
from pathlib import Path

import pytest
import torch

from examples import toy_2d as example
from examples.paper.studies import toy_2d


def test_blobs_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    expected, expected_labels = datasets.make_blobs(
        n_samples=500, centers=[(0, -10), (-10, 10), (10, 10)], cluster_std=1.6, random_state=17
    )
    points, labels = toy_2d.make_blobs()
    assert torch.equal(points, torch.from_numpy(expected).float())
    assert torch.equal(labels, torch.from_numpy(expected_labels))


def test_heads_have_no_bias_and_the_low_rank_ones_rank_two() -> None:
    heads = {v.key: toy_2d.build_net(v, seed=0)[-1] for v in toy_2d.VARIANTS}
    shapes = {key: [tuple(p.shape) for p in head.parameters()] for key, head in heads.items()}
    assert shapes == {"a": [(3, 20)], "b": [(3, 20)], "c": [(2, 20), (3, 2)], "d": [(2, 20), (3, 2)]}


@pytest.mark.slow  # 10,000 steps of the attack, a path for each network
def test_distances_are_the_papers_and_adam_undoes_the_last() -> None:
    # About 30 s on one core: the full example, four networks of 5000 iterations and two attacks on each.
    points, labels = toy_2d.make_blobs()
    outcomes = {v.key: toy_2d.run(v, points, labels) for v in toy_2d.VARIANTS}
    assert {key: o.distance for key, o in outcomes.items()} == pytest.approx(
        {"a": 1.67, "b": 1.76, "c": 3.39, "d": 19.33}, abs=0.1
    )
    assert all(o.accuracy == 1 for o in outcomes.values())
    assert all(len(o.path) == len(o.adam_path) == 2501 for o in outcomes.values())
    assert outcomes["d"].confidence < 0.05  # the attacker hardly moved ...
    assert outcomes["d"].adam_distance < 2  # ... which is a matter of his step rule


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "run", functools.partial(toy_2d.run, iterations=3, steps=3))


@pytest.mark.usefixtures("quick")
def test_main_prints_the_tables_and_saves_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example.main(["--output-dir", str(tmp_path), "--seeds", "2"])
    out = capsys.readouterr().out
    assert "19.33" in out
    assert "of 2 seeds" in out
    assert (tmp_path / "toy_2d.png").read_bytes().startswith(b"\x89PNG")


def test_main_keeps_an_existing_figure(tmp_path: Path) -> None:
    (tmp_path / "toy_2d.png").write_bytes(b"mine")
    with pytest.raises(SystemExit, match="--overwrite"):
        example.main(["--output-dir", str(tmp_path)])
    assert (tmp_path / "toy_2d.png").read_bytes() == b"mine"
