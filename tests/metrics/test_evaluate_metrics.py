"""Our metrics as those of `evaluate`: the same numbers, from lists, arrays and tensors, without a network."""

import math
import socket
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
import pytest
import torch
from torch import Tensor

from calor_hf.metrics import METRICS, AccuracyDifference, load_metric
from tests.metrics.small_evidence import of_rows, small_evidence

EVIDENCE = small_evidence()
OFFERED = [name for name in METRICS.names() if METRICS.get(name).per_image is not None]
INPUTS = {"list": Tensor.tolist, "array": Tensor.numpy, "tensor": Tensor.clone}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: Any, **more: Any) -> None:
        raise AssertionError("a metric asked for the network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def inputs(name: str, turn: Any = Tensor.clone) -> dict[str, Any]:
    evaluation_model = EVIDENCE.evaluation_model
    assert evaluation_model is not None
    assert evaluation_model.logits is not None
    if name == "attack_accuracy":
        return {"predictions": turn(evaluation_model.logits), "references": turn(EVIDENCE.labels)}
    return {
        "predictions": turn(evaluation_model.features),
        "references": turn(EVIDENCE.labels),
        "private_features": turn(evaluation_model.private_features),
        "private_labels": turn(EVIDENCE.private_labels),
    }


def test_distances_and_accuracy_are_offered() -> None:
    assert {"attack_accuracy", "feature_distance"} <= set(OFFERED)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", ["attack_accuracy", "feature_distance"])
def test_numbers_are_those_of_our_metric(name: str, kind: str, tmp_path: Path) -> None:
    ours = METRICS.get(name)().measure(EVIDENCE)[0]
    metric = load_metric(name, cache_dir=str(tmp_path))
    assert isinstance(metric, evaluate.Metric)
    found = metric.compute(**inputs(name, INPUTS[kind]))
    assert found == pytest.approx({name: ours.value, f"{name}_low": ours.low, f"{name}_high": ours.high})


@pytest.mark.parametrize("name", OFFERED)
def test_a_metric_describes_itself(name: str, tmp_path: Path) -> None:
    metric = load_metric(name, cache_dir=str(tmp_path))
    assert metric.name == name
    assert metric.module_type == "metric"
    assert set(metric.features) == {"predictions", "references"}
    assert metric.description
    assert "Source" not in metric.description
    assert "arXiv" in metric.citation
    assert "(n," in metric.inputs_description


def test_numbers_by_hand(tmp_path: Path) -> None:
    metric = load_metric("attack_accuracy", cache_dir=str(tmp_path))
    logits = [[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]
    assert metric.compute(predictions=logits, references=[0, 2, 1])["attack_accuracy"] == pytest.approx(1 / 3)
    assert metric.compute(predictions=logits, references=[0, 2, 1], k=2)["attack_accuracy"] == pytest.approx(2 / 3)
    alone = metric.compute(predictions=logits[:1], references=[0])
    assert alone["attack_accuracy"] == 1.0
    assert math.isnan(alone["attack_accuracy_low"])
    distance = load_metric("feature_distance", cache_dir=str(tmp_path))
    given = {"private_features": [[1.0, 1.0], [3.0, 0.0]], "private_labels": np.array([4, 4], dtype=np.int32)}
    assert distance.compute(predictions=[[0, 0]], references=[4], **given)["feature_distance"] == 2.0


def test_batches_add_up(tmp_path: Path) -> None:
    metric = load_metric("attack_accuracy", cache_dir=str(tmp_path))
    whole = metric.compute(**inputs("attack_accuracy"))
    for rows in torch.arange(12).split(5):
        some = of_rows(EVIDENCE, rows)
        assert some.evaluation_model is not None
        metric.add_batch(predictions=some.evaluation_model.logits, references=some.labels)
    assert metric.compute() == whole


class LargestScore(evaluate.Metric):
    """A metric of someone else, over the same inputs."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo("", "", datasets.Features(features))

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"largest_score": float(np.max(predictions))}


def test_metrics_of_others_combine_with_ours(tmp_path: Path) -> None:
    ours, theirs = load_metric("attack_accuracy", cache_dir=str(tmp_path)), LargestScore(cache_dir=str(tmp_path))
    both = evaluate.combine([ours, theirs])
    given = inputs("attack_accuracy")
    expected = ours.compute(**given) | {"largest_score": pytest.approx(float(given["predictions"].max()))}
    assert both.compute(**given) == expected
    for rows in torch.arange(12).split(5):
        both.add_batch(**{key: value[rows] for key, value in given.items()})
    assert both.compute() == expected


def test_a_difference_of_accuracies_by_hand(tmp_path: Path) -> None:
    comparison = AccuracyDifference(cache_dir=str(tmp_path))
    assert comparison.module_type == "comparison"
    # Class 0: the second is right in one more of two images; class 1: in one less of four. Of six images: 0.
    labels, first, second = [0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 2, 0]
    found = comparison.compute(predictions1=first, predictions2=second, references=labels)
    assert found["accuracy_difference"] == pytest.approx(0)
    # Two classes: half of the resamples hold one of them only.
    assert (found["accuracy_difference_low"], found["accuracy_difference_high"]) == pytest.approx((-0.25, 0.5))
    for rows in (slice(0, 3), slice(3, 6)):
        comparison.add_batch(predictions1=first[rows], predictions2=second[rows], references=labels[rows])
    assert comparison.compute() == found
    same = comparison.compute(predictions1=first, predictions2=first, references=labels)
    assert list(same.values()) == [0, 0, 0]
    alone = comparison.compute(predictions1=[3, 4], predictions2=[3, 3], references=[3, 3])
    assert alone["accuracy_difference"] == 0.5
    assert math.isnan(alone["accuracy_difference_low"])


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    metric = load_metric("attack_accuracy", cache_dir=str(tmp_path))
    whole = metric.compute(**inputs("attack_accuracy"))
    with pytest.raises(ValueError, match="1 of 2 rows of logits are not finite"):
        metric.compute(predictions=[[0.0, math.nan], [1.0, 0.0]], references=[0, 1])
    with pytest.raises(TypeError, match="color"):
        metric.compute(**inputs("attack_accuracy"), color="red")
    assert metric.compute(**inputs("attack_accuracy")) == whole


def test_a_file_may_hold_the_inputs_until_they_are_needed(tmp_path: Path) -> None:
    metric = load_metric("attack_accuracy", cache_dir=str(tmp_path), keep_in_memory=False)
    whole = load_metric("attack_accuracy", cache_dir=str(tmp_path)).compute(**inputs("attack_accuracy"))
    assert metric.compute(**inputs("attack_accuracy")) == whole


def test_what_evaluate_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not a mean over images.*it can compute attack_accuracy, feature_distance"):
        load_metric("agreement")
    with pytest.raises(KeyError, match="Did you mean 'attack_accuracy'"):
        load_metric("atack_accuracy")
