import logging
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from calor_hf import CALoRForImageClassification, suggest_rank
from calor_hf.training.checks import looks_untrained
from calor_hf.training.rank import _growing, _smallest
from tests.tiny_models import KINDS, tiny_base, tiny_inputs

CLASSES, LATENT = 12, 3


def base() -> ResNetForImageClassification:
    """Features are the means of the channels: the backbone is the identity but for pooling."""
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=CLASSES)
    model = ResNetForImageClassification(config)
    model.resnet = Means()
    model.classifier[1] = nn.Linear(24, CLASSES)
    return model


class Means(nn.Module):
    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention as Output

        return Output(last_hidden_state=pixel_values, pooler_output=pixel_values.mean(dim=(2, 3), keepdim=True))


def data(count: int, seed: int) -> list[dict[str, Any]]:
    """Classes that differ in three hidden directions of 24 channels."""
    fixed = torch.Generator().manual_seed(0)
    centers = torch.nn.functional.normalize(torch.randn(CLASSES, LATENT, generator=fixed), dim=1) * 3
    mix = torch.linalg.qr(torch.randn(24, LATENT, generator=fixed)).Q
    noise = torch.Generator().manual_seed(seed)
    samples = []
    for index in range(count):
        label = index % CLASSES
        features = mix @ (centers[label] + 0.25 * torch.randn(LATENT, generator=noise))
        samples.append({"pixel_values": features[:, None, None].expand(24, 2, 2), "labels": label})
    return samples


def test_the_hidden_rank_is_found() -> None:
    found = suggest_rank(base(), data(600, 1), data(240, 2), head="classifier.1", head_init="svd", steps=300)
    assert found.rank == LATENT
    assert found.full_accuracy > 0.9
    assert [rank for rank, _ in found.curve] == [2, 3]
    assert found.curve[0][1] < found.full_accuracy - found.budget <= found.curve[1][1]


def test_where_no_rank_keeps_the_accuracy_the_best_low_rank_head_is_the_measure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logging.getLogger("calor_hf").propagate = True
    assert _smallest([(2, 0.3), (4, 0.47), (8, 0.48), (16, 0.479)], full_accuracy=0.52, budget=0.02) == 4
    assert "no rank stays within 2.0 points of a full head" in caplog.text
    assert _smallest([(2, 0.3), (4, 0.505)], full_accuracy=0.52, budget=0.02) == 4


def test_the_same_seed_gives_the_same_curve_and_leaves_random_state_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = suggest_rank(base(), data(60, 1), data(60, 2), head="classifier.1", ranks=[1, 2], steps=20)
    torch.manual_seed(3)
    two = suggest_rank(base(), data(60, 1), data(60, 2), head="classifier.1", ranks=[1, 2], steps=20)
    assert one == two
    assert before.shape == torch.get_rng_state().shape


def test_a_calor_model_gives_its_features_too() -> None:
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=CLASSES)
    model = CALoRForImageClassification.from_config(config, rank=2)
    samples = [{"pixel_values": torch.rand(3, 32, 32), "labels": i % 3} for i in range(12)]
    assert suggest_rank(model, samples, samples, ranks=[1], steps=2).rank == 1


def test_the_head_that_is_measured_is_the_one_that_training_puts_in() -> None:
    def accuracy(**head: object) -> float:
        """Of rank 3 after 60 steps."""
        settings: dict[str, Any] = {"head": "classifier.1", "ranks": [LATENT], "steps": 60, **head}
        return suggest_rank(base(), data(600, 1), data(240, 2), **settings).curve[0][1]

    random = accuracy()
    assert random == accuracy(head_init="random", activation="tanh", input_norm=None, bias=True)
    found = [accuracy(activation="relu"), accuracy(input_norm="batchnorm"), accuracy(bias=False)]
    assert len({random, *found}) == 4
    assert accuracy(head_init="svd") > random + 0.05
    with pytest.raises(ValueError, match="straight around zero"):
        accuracy(head_init="svd", activation="relu")


@pytest.mark.parametrize("kind", [*KINDS, "EfficientNetForImageClassification", "MobileViTForImageClassification"])
def test_random_weights_are_noticed_until_they_are_trained(kind: str) -> None:
    model = tiny_base(kind, num_labels=2)
    assert looks_untrained(model)
    assert looks_untrained(CALoRForImageClassification.from_base(tiny_base(kind), rank=1, input_norm="batchnorm"))
    model.train()
    model(**tiny_inputs(kind), labels=torch.tensor([0, 1, 1, 0])).loss.backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert not looks_untrained(model)


def test_random_weights_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("calor_hf").propagate = True
    samples = [{"pixel_values": torch.rand(3, 32, 32), "labels": i % 3} for i in range(12)]
    suggest_rank(tiny_base("vit"), samples, samples, ranks=[1], steps=2)
    assert "the model looks untrained: every norm layer is as initialized" in caplog.text
    caplog.clear()
    suggest_rank(base(), samples, samples, ranks=[1], steps=2, head="classifier.1")  # has no norm layer
    assert "untrained" not in caplog.text


@pytest.mark.parametrize(
    ("limit", "expected"), [(1, [1]), (2, [2]), (10, [2, 3, 4, 6, 8, 10]), (16, [2, 3, 4, 6, 8, 12, 16])]
)
def test_ranks_grow_to_the_limit(limit: int, expected: list[int]) -> None:
    assert list(_growing(limit)) == expected
