"""Contract of every registered metric; a new file in `metrics` is tested here without being named."""

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from calor_hf.metrics import METRICS, Evidence, Measure, View
from tests.metrics.small_evidence import (
    CLASSES,
    HELD,
    IDENTITIES,
    IMAGES,
    PRIVATE,
    of_held_rows,
    of_private_rows,
    of_rows,
    small_evidence,
)

NAMES = METRICS.names()
QUICK = [name for name in NAMES if not METRICS.get(name).slow]
ANY = [pytest.param(name, marks=pytest.mark.slow) if METRICS.get(name).slow else name for name in NAMES]
NEEDED = [(name, need) for name in NAMES for need in METRICS.get(name).needs]  # refused before anything is trained
WITH_NUMBERS = [(name, need) for name, need in NEEDED if not need.endswith("labels")]  # whole ones are always finite
FIELDS = {field.name for field in dataclasses.fields(Evidence)}


def measured(name: str, evidence: Evidence) -> dict[str, Measure]:
    return {measure.name: measure for measure in METRICS.get(name)().measure(evidence)}


def tensors(holder: Any) -> list[Tensor]:
    """All tensors of an evidence, those of its views too."""
    values = [getattr(holder, field.name) for field in dataclasses.fields(holder)]
    inner = [tensor for value in values if isinstance(value, View) for tensor in tensors(value)]
    return inner + [value for value in values if isinstance(value, Tensor)]


def numbers(measure: Measure) -> list[float]:
    return [measure.value, measure.low, measure.high, *(value for _, value in sorted(measure.by_identity.items()))]


def test_the_registry_holds_the_published_ones() -> None:
    published = {"attack_accuracy", "feature_distance", "verification", "agreement", "fid", "kid"}
    published |= {"prdc", "knowledge_extraction", "decoder_inversion", "identity_error", "image_similarity"}
    assert published <= set(NAMES)


def test_no_two_numbers_have_one_name() -> None:
    found = [measure.name for name in QUICK for measure in METRICS.get(name)().measure(small_evidence())]
    assert len(found) == len(set(found))


@pytest.mark.parametrize("name", NAMES)
def test_needs_are_things_that_evidence_can_have(name: str) -> None:
    assert set(METRICS.get(name).needs) <= FIELDS
    assert METRICS.get(name)().missing(small_evidence()) is None


@pytest.mark.parametrize(("name", "need"), NEEDED)
def test_what_a_metric_needs_it_asks_for(name: str, need: str) -> None:
    metric, without = METRICS.get(name)(), small_evidence(**{need: None})
    assert metric.missing(without) == need
    with pytest.raises(ValueError, match=f"needs {need}, and the evidence has none"):
        metric.measure(without)


@pytest.mark.parametrize("name", ANY)
def test_what_a_metric_does_not_ask_for_it_can_do_without(name: str) -> None:
    kind = METRICS.get(name)
    optional = [field for field in dataclasses.fields(Evidence) if field.default is not dataclasses.MISSING]
    spare: dict[str, Any] = {field.name: field.default for field in optional if field.name not in kind.needs}
    assert kind().measure(small_evidence(**spare))


@pytest.mark.parametrize("name", ANY)
def test_numbers_can_be_read(name: str) -> None:
    evidence = small_evidence()
    for measure in measured(name, evidence).values():
        assert measure.direction in ("leakage", "privacy", "neither")
        assert measure.unit
        assert all(type(number) is float for number in numbers(measure))
        assert 0 <= measure.identities <= len(IDENTITIES)
        assert measure.images >= 0
        assert set(measure.by_identity) <= set(evidence.labels.tolist())
        assert not math.isinf(measure.value)
        assert measure.note or not math.isnan(measure.value)
        assert math.isnan(measure.low) == math.isnan(measure.high)
        assert math.isnan(measure.low) or measure.low <= measure.high
        assert math.isnan(measure.std) or measure.std >= 0
        if measure.unit == "share":
            assert all(math.isnan(number) or 0 <= number <= 1 for number in numbers(measure))
        if "squared distance" in measure.unit:
            assert all(math.isnan(number) or number >= 0 for number in numbers(measure))


@pytest.mark.parametrize("name", QUICK)
def test_some_number_is_there(name: str) -> None:
    """Or the checks of values here would pass for nothing."""
    assert any(math.isfinite(measure.value) for measure in measured(name, small_evidence()).values())


@pytest.mark.parametrize("name", ANY)
def test_looking_changes_nothing_and_says_the_same_again(name: str) -> None:
    evidence = small_evidence()
    before, state = copy.deepcopy(tensors(evidence)), torch.get_rng_state()
    first = measured(name, evidence)
    assert all(torch.equal(old, new) for old, new in zip(before, tensors(evidence), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(77)
    again = measured(name, evidence)
    assert {key: numbers(m) for key, m in again.items()} == {
        key: pytest.approx(numbers(m), nan_ok=True) for key, m in first.items()
    }


@pytest.mark.parametrize("name", QUICK)  # what trains may see the order
def test_the_order_of_people_and_of_pictures_does_not_matter(name: str) -> None:
    evidence = small_evidence()
    first = measured(name, evidence)
    identities, slots = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])  # those of a person stay together
    rows = (IMAGES * identities[:, None] + slots[None, :]).flatten()
    shuffled = of_private_rows(of_rows(evidence, rows), torch.randperm(len(IDENTITIES) * PRIVATE))
    shuffled = of_held_rows(shuffled, torch.randperm(CLASSES * HELD))
    for key, measure in measured(name, shuffled).items():
        assert numbers(measure) == pytest.approx(numbers(first[key]), rel=1e-5, abs=1e-7, nan_ok=True), key


@pytest.mark.parametrize("name", ANY)
def test_one_person_has_no_interval(name: str) -> None:
    for measure in measured(name, of_rows(small_evidence(), torch.arange(IMAGES))).values():
        assert math.isnan(measure.low)
        assert math.isnan(measure.high)
        assert measure.note or not math.isnan(measure.value)


@pytest.mark.parametrize("name", ANY)
def test_one_image_gives_a_number_or_a_reason(name: str) -> None:
    for measure in measured(name, of_rows(small_evidence(), torch.tensor([4]))).values():
        assert math.isnan(measure.std)
        assert measure.note or not math.isnan(measure.value)
        assert measure.identities <= 1


@pytest.mark.parametrize(("name", "need"), WITH_NUMBERS)
def test_a_number_that_is_none_is_told(name: str, need: str) -> None:
    evidence = small_evidence()
    spoilt = getattr(evidence, need)
    if isinstance(spoilt, View):
        logits = None if spoilt.logits is None else _spoilt(spoilt.logits)
        spoilt = dataclasses.replace(spoilt, features=_spoilt(spoilt.features), logits=logits)
    elif callable(spoilt):
        answers = spoilt

        def spoilt(images: Tensor) -> dict[str, Tensor]:
            return {key: _spoilt(values) for key, values in answers(images).items()}

    else:
        spoilt = _spoilt(spoilt)
    with pytest.raises(ValueError, match="finite"):
        METRICS.get(name)().measure(dataclasses.replace(evidence, **{need: spoilt}))


def _spoilt(values: Tensor) -> Tensor:
    spoilt = values.clone()
    spoilt.view(len(spoilt), -1)[1, 0] = math.nan
    return spoilt
