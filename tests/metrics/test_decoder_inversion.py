"""Decoders against closed forms: nothing known, all known, half known; what a target releases; what is refused."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calor_hf.heads.classifier_head import ClassifierHead, MeanOfHeads
from calor_hf.heads.low_rank_head import LowRankHead
from calor_hf.metrics import Measure
from calor_hf.metrics.decoder_inversion import (
    CODES,
    Decoder,
    DecoderInversion,
    decoder_inversion,
    decoding_errors,
    released,
    train_decoder,
)
from calor_hf.targets.base import Target
from tests.metrics.small_evidence import HELD, answers, of_rows, small_evidence

SIDE = 16
# Images are 0.5 + x·LEFT + y·RIGHT, with x and y uniform in [-0.4, 0.4]: halves, each of a gray of its own.
LEFT = torch.zeros(SIDE, SIDE)
LEFT[:, : SIDE // 2] = 1
RIGHT = 1 - LEFT


def halves(count: int, seed: int) -> Tensor:
    x, y = (0.8 * torch.rand(2, count, 1, 1, 1, generator=torch.Generator().manual_seed(seed)) - 0.4).unbind()
    return (0.5 + x * LEFT + y * RIGHT).expand(count, 3, SIDE, SIDE)


def greys(images: Tensor) -> Tensor:
    """(n, 2) the greys of both halves."""
    return torch.stack([images[:, 0, 0, 0], images[:, 0, 0, -1]], dim=1)


def ask(images: Tensor) -> dict[str, Tensor]:
    """A target that says everything in its features, of one half alone in its code, and nothing in its logits."""
    both = greys(images)
    return {"logits": torch.ones(len(images), 4), "code": both[:, :1], "features": both}


def measured(**options: Any) -> dict[str, Measure]:
    private = halves(60, 2)
    labels = torch.tensor([0, 3, 7]).repeat_interleave(20)
    found = decoder_inversion(ask, halves(160, 1), private, labels, **{"epochs": 12, **options})
    return {measure.name.removeprefix("decoder_inversion_"): measure for measure in found}


def test_decoders_come_near_the_least_error_there_is() -> None:
    found, public, private = measured(), greys(halves(160, 1)), greys(halves(60, 2))
    assert list(found) == ["chance", *CODES]
    off = (private - public.mean(dim=0)).square()
    assert found["chance"].value == pytest.approx(off.mean().item(), rel=1e-4)
    # Nothing known: the mean image, up to what was learned of the public sample.
    assert found["logits"].value == pytest.approx(found["chance"].value, rel=0.05)
    # The right half cannot be known from the left one: half of the pixels keep their error.
    unknown = off[:, 1].mean().item() / 2
    assert 0.95 * unknown < found["code"].value < 1.2 * unknown
    assert found["features"].value < 0.1 * found["chance"].value


def test_measures_say_what_they_are() -> None:
    found = measured(epochs=2)
    for name, measure in found.items():
        assert measure.direction == ("neither" if name == "chance" else "privacy")
        assert (measure.images, measure.identities, measure.unit) == (60, 3, "mean squared error")
        assert measure.low <= measure.value <= measure.high
        assert set(measure.by_identity) == {0, 3, 7}
        assert math.isnan(measure.std)
        assert "60 private images, rebuilt by decoders trained on 160 public ones" in measure.note
    assert "from 1 numbers per image" in found["code"].note
    share = found["features"].value / found["chance"].value
    assert found["features"].note.startswith(f"{100 * share:.0f} % of the chance level")


def test_an_untrained_decoder_draws_the_mean_picture() -> None:
    images = torch.rand(6, 3, 20, 12, generator=torch.Generator().manual_seed(1)) * 0.9 + 0.05
    decoder = Decoder(torch.randn(6, 3), images).eval()
    drawn = decoder(torch.randn(2, 3))
    torch.testing.assert_close(drawn, images.mean(dim=0).expand(2, -1, -1, -1))


def test_errors_by_hand() -> None:
    images = torch.full((3, 3, 4, 4), 0.5)
    decoder = Decoder(torch.randn(3, 2), images).eval()
    off = images.clone()
    off[1] += 0.1
    off[2, 0] += 0.3  # one of three channels: 0.09 / 3
    assert decoding_errors(decoder, torch.randn(3, 2), off).tolist() == pytest.approx([0, 0.01, 0.03], abs=1e-7)


def test_a_number_that_is_dead_on_public_pictures_misleads_nobody() -> None:
    images = halves(40, 1)
    codes = torch.cat([greys(images), torch.zeros(40, 1)], dim=1)
    decoder = train_decoder(codes, images, epochs=3)
    alive = codes + torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(decoder(alive), decoder(codes))


def test_the_decoder_is_that_of_the_best_epoch() -> None:
    # Codes that are noise: whatever is learned of them is wrong on other images, so the untrained one is best or near.
    images, codes = halves(40, 1), torch.randn(40, 30, generator=torch.Generator().manual_seed(2))
    fresh = halves(200, 3)
    noise = torch.randn(200, 30, generator=torch.Generator().manual_seed(4))
    error = decoding_errors(train_decoder(codes, images, epochs=40, seed=2), noise, fresh).mean()
    mean = (fresh - images.mean(dim=0)).square().mean()
    assert error < 1.1 * mean


def test_the_same_seed_gives_the_same_numbers() -> None:
    state = torch.get_rng_state()
    first, again, other = (measured(epochs=2, codes=["features"], seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert list(first) == ["chance", "features"]
    assert first["features"].value == again["features"].value != other["features"].value
    assert first["chance"].value == other["chance"].value


def test_public_pictures_of_another_size_are_resized() -> None:
    public = halves(20, 1).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    sizes: list[tuple[int, ...]] = []

    def callback(images: Tensor) -> dict[str, Tensor]:
        sizes.append(tuple(images.shape))
        return {"features": greys(images)}

    found = decoder_inversion(callback, public, halves(6, 2), torch.arange(6), epochs=1)
    assert [measure.name for measure in found] == ["decoder_inversion_chance", "decoder_inversion_features"]
    assert sizes == [(20, 3, 16, 16), (6, 3, 16, 16)]


@pytest.mark.parametrize(
    ("public", "private", "words"),
    [
        (halves(2, 1), halves(4, 2), "three public images or more to learn from, got 2"),
        (halves(5, 1) + 1, halves(4, 2), r"expected public_images \(n, 3, height, width\) in \[0, 1\]"),
        (halves(5, 1), halves(4, 2) - 1, "expected private_images"),
        (halves(5, 1), halves(4, 2) * math.nan, "4 of 4 rows of private_images are not finite"),
        (halves(5, 1), halves(3, 2), "expected private_images with 4 rows"),
    ],
)
def test_what_does_not_fit_is_refused(public: Tensor, private: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decoder_inversion(ask, public, private, torch.arange(4), epochs=1)


def test_answers_have_a_finite_row_a_picture() -> None:
    def short(images: Tensor) -> dict[str, Tensor]:
        return {"logits": torch.ones(4, 2)}

    with pytest.raises(ValueError, match="expected logits of public images with 5 rows"):
        decoder_inversion(short, halves(5, 1), halves(4, 2), torch.arange(4))

    def spoilt(images: Tensor) -> dict[str, Tensor]:
        return {"code": torch.full((len(images), 2), math.nan if len(images) == 4 else 1.0)}

    with pytest.raises(ValueError, match="4 of 4 rows of code of private images are not finite"):
        decoder_inversion(spoilt, halves(5, 1), halves(4, 2), torch.arange(4))


def test_unknown_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected codes of logits, code, features and epochs >= 1, got labels; 30"):
        DecoderInversion(codes=["labels"])
    with pytest.raises(ValueError, match="got logits; 0"):
        DecoderInversion(codes=["logits"], epochs=0)


class Toy(Target):
    """Features are the mean colors of an image."""

    def __init__(self, head: nn.Module | Any) -> None:
        self.head, self.num_classes, self.image_size = head, 4, (SIDE, SIDE)
        self.module = nn.ModuleList([head] if isinstance(head, nn.Module) else [nn.Linear(1, 1)])

    def features(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def test_a_low_rank_head_releases_its_code() -> None:
    head = LowRankHead(3, 4, rank=2)
    images = torch.rand(300, 3, SIDE, SIDE)
    found = released(Toy(head.train()), images)
    features = images.mean(dim=(2, 3))
    assert {name: tuple(values.shape) for name, values in found.items()} == {
        "logits": (300, 4), "features": (300, 3), "code": (300, 2)
    }  # fmt: skip
    torch.testing.assert_close(found["features"], features)
    torch.testing.assert_close(found["code"], head.down(features).tanh().detach())
    torch.testing.assert_close(found["logits"], head.up(found["code"]).detach())
    assert head.training
    assert not any(values.requires_grad for values in found.values())


def test_codes_of_several_low_rank_heads_lie_side_by_side() -> None:
    heads = MeanOfHeads([LowRankHead(1, 4, rank=1), LowRankHead(2, 4, rank=2)], [1, 2])
    assert released(Toy(heads), torch.rand(5, 3, SIDE, SIDE))["code"].shape == (5, 3)


@pytest.mark.parametrize("head", [
    ClassifierHead(nn.Linear(3, 4)), lambda features: features,
    MeanOfHeads([LowRankHead(1, 4, rank=1), ClassifierHead(nn.Linear(2, 4))], [1, 2]),
])  # fmt: skip
def test_another_head_has_no_code(head: Any) -> None:
    images = torch.rand(5, 3, SIDE, SIDE)
    assert set(released(Toy(head), images)) == {"logits", "features"}


def test_a_stochastic_target_says_the_same_again() -> None:
    class Noisy(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features + torch.randn_like(features)

    target, images = Toy(Noisy()), torch.rand(200, 3, SIDE, SIDE)
    target.module = nn.ModuleList([target.module, nn.Linear(1, 1)])  # so that it has a device and a precision
    state = torch.get_rng_state()
    first, again = released(target, images), released(target, images)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first["logits"], again["logits"])
    noise = first["logits"] - first["features"]
    assert noise.std().item() == pytest.approx(1, abs=0.1)
    assert not torch.equal(noise[:72], noise[128:])


def test_the_metric_asks_about_held_out_pictures_of_the_attacked_people() -> None:
    asked: list[int] = []

    def callback(images: Tensor) -> dict[str, Tensor]:
        asked.append(len(images))
        return {"features": answers(images)["features"]}

    evidence = small_evidence(ask=callback)
    metric = DecoderInversion(epochs=1)
    first = metric.measure(evidence)
    assert asked == [20, 4 * HELD]
    others = dataclasses.replace(evidence, images=evidence.images.flip(0))
    assert metric.measure(others) == first  # other reconstructions, the same question
    fewer = metric.measure(of_rows(evidence, torch.arange(6)))
    assert asked[4:] == [20, 2 * HELD]
    assert set(fewer[0].by_identity) == {0, 2}
    assert metric.measure(dataclasses.replace(evidence, ask=answers)) != first


def test_no_held_out_picture_of_the_people_is_told() -> None:
    (found,) = DecoderInversion(epochs=1).measure(small_evidence(held_labels=torch.full((36,), 77)))
    assert math.isnan(found.value)
    assert found.note == "no held-out image of the attacked people"
