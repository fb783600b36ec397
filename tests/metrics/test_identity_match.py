"""Identity match: values by hand, and the renderer's own truth."""

import pytest
import torch

from calor_hf.metrics import METRICS, Evidence
from calor_hf.metrics.identity_match import matched


def test_the_nearest_person_counts() -> None:
    # On a line: people at 0, 1 and -1. 0.4 is nearest to 0, 0.6 to 1; 0.5 is as near to both, which is no match.
    enrolled = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    drawn = torch.tensor([[0.4, 0.3], [0.6, 0.3], [0.5, 0.0], [0.6, -0.2]])
    assert matched(drawn, torch.tensor([0, 0, 0, 1]), enrolled).tolist() == [1, 0, 0, 1]
    with pytest.raises(ValueError, match=r"identity numbers \(n, k\) and \(classes, k\), got \(4, 2\) and \(3, 1\)"):
        matched(drawn, torch.tensor([0, 0, 0, 1]), enrolled[:, :1])


def test_people_matched_at_least_once() -> None:
    enrolled = torch.eye(3)
    labels = torch.tensor([0, 0, 2, 2])
    empty = torch.empty(4, 3, 2, 2)
    evidence = Evidence(empty, labels, empty, labels, identity=enrolled[[0, 1, 1, 0]], enrolled_identities=enrolled)
    images, people = METRICS.get("identity_match")().measure(evidence)
    assert (images.name, images.value, images.by_identity) == ("identity_match@1", 0.25, {0: 0.5, 2: 0.0})
    assert (people.name, people.value, people.identities) == ("identities_matched", 0.5, 2)
    assert "nearest to the right one of 3" in images.note
