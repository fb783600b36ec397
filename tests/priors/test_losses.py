"""The losses of each prior against the formulas of its paper, written out image by image."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from calor_hf.priors import PRIORS, PriorTraining
from calor_hf.priors.base import TrainDraws
from tests.priors.small_prior import BATCH, CLASSES, SIDE, Pictures, precise, tiny_prior, tiny_target

NAMES = PRIORS.names()
SEED, STEP = 5, 2


class World:
    """A prior in float64, its networks, a target, and a batch of real images with labels."""

    def __init__(self, name: str) -> None:
        self.target = tiny_target()
        self.target.module.double()
        self.prior: PriorTraining[Any] = tiny_prior(name)
        torch.manual_seed(1)
        generator: Any = self.prior.build(SIDE, self.target).double().train()
        self.generator = generator
        with torch.no_grad():  # no term rests on a weight that starts at zero
            for weight in generator.parameters():
                weight += 0.1 * torch.randn_like(weight)
        if generator.has_realism:
            generator.discriminator.eval()  # spectral norm moves in training; the discriminators have no other mode
        count = BATCH * self.prior.batches_per_update
        self.images = torch.stack([Pictures()[index] for index in range(count)]).double()
        self.labels = torch.arange(count) % CLASSES

    def draws(self) -> TrainDraws:
        """Draws that give the same numbers each time."""
        return TrainDraws(SEED, STEP, BATCH, self.images)

    def discriminator_loss(self) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.prior.discriminator_loss(
            self.generator, self.target, (self.images, self.labels), self.draws()
        )
        return terms

    def generator_loss(self) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.prior.generator_loss(
            self.generator, self.target, (self.images, self.labels), self.draws()
        )
        return terms

    def fakes(self, draws: TrainDraws, labels: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            images: Tensor = self.generator(draws.normal(self.generator.latent_dim), labels)
        return images


def logsumexp(logits: list[float]) -> float:
    return math.log(sum(math.exp(value) for value in logits))


def softmax(logits: list[float]) -> list[float]:
    whole = sum(math.exp(value) for value in logits)
    return [math.exp(value) / whole for value in logits]


def values(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in terms.items()}


def test_gmi_discriminator() -> None:
    world = World("gmi")
    draws = world.draws()
    fakes = world.fakes(draws)
    shares = draws.uniform(1)

    def evaluation_model(image: Tensor) -> float:
        value: float = world.generator.discriminator(image[None]).item()
        return value

    wasserstein = (
        sum(evaluation_model(fake) for fake in fakes) / BATCH
        - sum(evaluation_model(real) for real in world.images) / BATCH
    )
    penalty, step = 0.0, 1e-6
    for real, fake, share in zip(world.images, fakes, shares, strict=True):
        between = share * real + (1 - share) * fake
        pixels = step * torch.eye(between.numel(), dtype=torch.float64).view(-1, *between.shape)
        with torch.no_grad():  # the slope of every pixel, from both sides
            slope = (
                world.generator.discriminator(between + pixels) - world.generator.discriminator(between - pixels)
            ) / (2 * step)
        penalty += (math.sqrt(float(slope.square().sum())) - 1) ** 2 / BATCH
    assert values(world.discriminator_loss()) == pytest.approx(
        {"wasserstein": wasserstein, "penalty": 10 * penalty}, rel=1e-6
    )


def test_gmi_penalty_teaches_the_discriminator() -> None:
    world = World("gmi")
    weight = world.generator.discriminator.layers[0][0].weight
    penalty = world.discriminator_loss()["penalty"]
    (slope,) = torch.autograd.grad(penalty, weight)
    index, step, found = (0, 1, 2, 3), 1e-6, []
    for change in (step, -2 * step):
        with torch.no_grad():
            weight[index] += change
        found.append(world.discriminator_loss()["penalty"].item())
    assert float(slope[index]) == pytest.approx((found[0] - found[1]) / (2 * step), rel=1e-4)


def test_gmi_generator() -> None:
    world = World("gmi")
    fakes = world.fakes(world.draws())
    evaluated = [world.generator.discriminator(fake[None]).item() for fake in fakes]
    assert values(world.generator_loss()) == pytest.approx({"adversarial": -sum(evaluated) / BATCH})


def test_ked_discriminator() -> None:
    world = World("ked")
    fakes = world.fakes(world.draws())
    labeled, unlabeled = world.images[:BATCH], world.images[BATCH:]

    def logits(images: Tensor) -> list[list[float]]:  # the minibatch discrimination compares the images of a call
        found: list[list[float]] = world.generator.discriminator(images)[1].tolist()
        return found

    labels = 0.0
    for wanted, given in zip(world.target(labeled).tolist(), logits(labeled), strict=True):
        labels -= sum(p * math.log(q) for p, q in zip(softmax(wanted), softmax(given), strict=True)) / BATCH
    real = [logsumexp(row) for row in logits(unlabeled)]
    fake = [logsumexp(row) for row in logits(fakes)]
    softplus = [sum(math.log(1 + math.exp(value)) for value in rows) / BATCH for rows in (real, fake)]
    realness = 0.5 * (softplus[0] - sum(real) / BATCH + softplus[1])
    assert values(world.discriminator_loss()) == pytest.approx({"labels": labels, "realness": realness}, rel=1e-6)


def test_ked_generator() -> None:
    world = World("ked")
    fakes = world.fakes(world.draws())
    on_fake, logits = world.generator.discriminator(fakes)
    on_real, _ = world.generator.discriminator(world.images[BATCH:])
    columns = zip(on_fake.T.tolist(), on_real.T.tolist(), strict=True)
    gaps = [abs(sum(fake) / BATCH - sum(real) / BATCH) for fake, real in columns]
    entropy = -sum(p * math.log(p) for row in logits.tolist() for p in softmax(row))
    expected = {"features": sum(gaps) / len(gaps), "entropy": 1e-4 * entropy}
    assert values(world.generator_loss()) == pytest.approx(expected, rel=1e-6)
    assert entropy > 0.1  # a sum over the batch, not a mean


def test_plg_discriminator() -> None:
    world = World("plg")
    draws = world.draws()
    dithered = world.images + draws.uniform(3 * SIDE * SIDE).view(world.images.shape) / 256
    wanted = draws.labels(CLASSES)
    fakes = world.fakes(draws, wanted)

    def evaluation_model(image: Tensor, label: Tensor) -> float:
        value: float = world.generator.discriminator(image[None], label[None]).item()
        return value

    real = [max(0.0, 1 - evaluation_model(image, label)) for image, label in zip(dithered, world.labels, strict=True)]
    fake = [max(0.0, 1 + evaluation_model(image, label)) for image, label in zip(fakes, wanted, strict=True)]
    expected = {"real": sum(real) / BATCH, "fake": sum(fake) / BATCH}
    assert values(world.discriminator_loss()) == pytest.approx(expected, rel=1e-6)


def test_plg_generator() -> None:
    world = World("plg")
    draws = world.draws()
    wanted = draws.labels(CLASSES)
    fakes = world.fakes(draws, wanted)
    evaluated = [
        world.generator.discriminator(fake[None], label[None]).item() for fake, label in zip(fakes, wanted, strict=True)
    ]
    view: Any = world.prior
    logits = world.target(view.view(fakes, draws.uniform(8))).tolist()
    margins = [
        max(value for other, value in enumerate(row) if other != label) - row[label]
        for row, label in zip(logits, wanted.tolist(), strict=True)
    ]
    expected = {"adversarial": -sum(evaluated) / BATCH, "guidance": 0.2 * sum(margins) / BATCH}
    assert values(world.generator_loss()) == pytest.approx(expected, rel=1e-6)


def test_plg_views_are_those_of_the_paper() -> None:
    view = World("plg").prior.view  # type: ignore[attr-defined]
    assert (view.scale, view.flip_probability, view.degrees) == ((0.8, 1.0), 0.5, 5.0)
    assert (view.brightness, view.contrast, view.jitter_probability) == (0.2, 0.2, 0.5)


def test_lokt_discriminator() -> None:
    world = World("lokt")
    draws = world.draws()
    wanted = draws.labels(CLASSES)
    fakes = world.fakes(draws, wanted)
    with torch.no_grad():  # so that the target's labels differ, and from the wanted ones
        answers = world.target(fakes)
        world.target.head.classifier.bias -= answers.mean(dim=0)  # type: ignore[attr-defined]
    theirs = world.target(fakes).argmax(dim=1).tolist()
    assert len(set(theirs)) > 1
    assert theirs != wanted.tolist()

    def evaluation_model(image: Tensor) -> tuple[float, list[float]]:
        value, logits = world.generator.discriminator(image[None])
        return 1 / (1 + math.exp(-value.item())), softmax(logits[0].tolist())

    real = [-math.log(evaluation_model(image)[0]) for image in world.images]
    fake = [-math.log(1 - evaluation_model(image)[0]) for image in fakes]
    labels = [-math.log(evaluation_model(image)[1][label]) for image, label in zip(fakes, theirs, strict=True)]
    expected = {"real": sum(real) / BATCH, "fake": sum(fake) / BATCH, "labels": 1.5 * sum(labels) / BATCH}
    assert values(world.discriminator_loss()) == pytest.approx(expected, rel=1e-6)


def test_lokt_generator() -> None:
    world = World("lokt")
    draws = world.draws()
    wanted = draws.labels(CLASSES)
    fakes = world.fakes(draws, wanted)
    adversarial = classes = 0.0
    for fake, label in zip(fakes, wanted.tolist(), strict=True):
        value, logits = world.generator.discriminator(fake[None])
        adversarial += math.log(1 + math.exp(-value.item())) / BATCH
        classes -= math.log(softmax(logits[0].tolist())[label]) / BATCH
    expected = {"adversarial": adversarial, "classes": 1.5 * classes}
    assert values(world.generator_loss()) == pytest.approx(expected, rel=1e-6)


def test_lokt_warms_up_without_the_target() -> None:
    world = World("lokt")
    real, cold = (world.images, world.labels), TrainDraws(SEED, 0, BATCH, world.images)
    world.target.head = None  # type: ignore[assignment]  # an answer would be an error
    assert set(world.prior.discriminator_loss(world.generator, world.target, real, cold)) == {"real", "fake"}
    assert set(world.prior.generator_loss(world.generator, world.target, real, cold)) == {"adversarial"}
    with pytest.raises(TypeError):
        world.discriminator_loss()


PUBLISHED: dict[str, dict[str, Any]] = {
    "gmi": {"beta1": 0.5, "beta2": 0.999, "penalty": 10, "latent_dim": 100, "steps": 30_000},
    "ked": {"beta1": 0.5, "beta2": 0.999, "entropy": 1e-4, "latent_dim": 100, "steps": 10_000},
    "plg": {"beta1": 0.0, "beta2": 0.9, "guidance": 0.2, "latent_dim": 128, "steps": 30_000, "top": 30},
    "lokt": {
        "beta1": 0.0,
        "beta2": 0.9,
        "class_weight": 1.5,
        "latent_dim": 128,
        "steps": 21_000,
        "warm_up": 1000,
        "batch_size": 256,
    },
    "stylegan2": {
        "beta1": 0.0, "beta2": 0.99, "lr": 2e-3, "batch_size": 32, "discriminator_steps": 1, "steps": 25_000_000 // 32,
        "latent_dim": 512, "max_channels": 512, "mapping_layers": 8, "truncation": 0.5, "gamma": None, "interval": 16,
        "mixing": 0.9, "flip": True, "ema_images": 10_000, "ema_ramp": 0.05,
    },
}  # fmt: skip


def test_flow_loss_is_the_papers() -> None:
    world = World("flow")
    draws = world.draws()
    times = [1 / (1 + math.exp(0.8 - 0.8 * z)) for z in draws.normal(1).squeeze(1).tolist()]
    noise = draws.normal(3 * SIDE**2)
    squares: list[float] = []
    for image, start, t in zip(world.images, noise, times, strict=True):
        data, z = 2 * image.flatten() - 1, start
        x_t = (1 - t) * z + t * data
        told = torch.tensor([1000 * t], dtype=torch.float64)
        clean = world.generator.network(x_t.view(1, 3, SIDE, SIDE), told).sample.flatten()
        squares += (((clean - x_t) / (1 - t) - (data - z)) ** 2).tolist()
    assert values(world.generator_loss()) == pytest.approx({"velocity": sum(squares) / len(squares)}, rel=1e-6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_the_published_ones(name: str) -> None:
    common: dict[str, float] = {"lr": 2e-4, "batch_size": 64, "discriminator_steps": 5, "width": 64}
    assert PRIORS.get(name).config_class().to_dict() == common | PUBLISHED[name]


@pytest.mark.parametrize("name", NAMES)
def test_each_term_teaches_its_own_network_alone(name: str) -> None:
    world = World(name)
    discriminator = list(world.generator.discriminator.parameters()) if world.generator.has_realism else []
    known = {id(weight) for weight in discriminator}
    body = [weight for weight in world.generator.parameters() if id(weight) not in known]
    for term, loss in world.discriminator_loss().items():
        slopes = torch.autograd.grad(loss, discriminator + body, allow_unused=True, retain_graph=True)
        assert any(slope is not None and slope.abs().max() > 1e-12 for slope in slopes[: len(discriminator)]), term
        assert all(slope is None for slope in slopes[len(discriminator) :]), f"{term} reaches the generator"
    for weight in discriminator:
        weight.requires_grad_(False)  # as the loop does it
    for term, loss in world.generator_loss().items():
        slopes = torch.autograd.grad(loss, body, allow_unused=True, retain_graph=True)
        assert all(slope is not None for slope in slopes), term
        assert any(slope.abs().max() > 1e-12 for slope in slopes), term
        assert loss.shape == ()


@pytest.mark.parametrize("name", NAMES)
def test_terms_of_the_shares_of_a_batch_average_to_those_of_the_whole(name: str) -> None:
    # Batch norm, KED's company of a batch and its mean features are about a share alone; all else adds up.
    target = tiny_target()
    torch.manual_seed(1)
    prior = precise(name)
    generator: Any = prior.build(SIDE, target)
    if generator.has_realism:
        generator.discriminator.eval()
    if name == "ked":
        with torch.no_grad():
            generator.discriminator.classifier.weight[:, -generator.discriminator.KERNELS :] = 0
    parts = prior.batches_per_update
    images = torch.stack([Pictures()[index] for index in range(parts * BATCH)]).double()
    labels = torch.arange(len(images)) % CLASSES

    def terms(process: int, processes: int) -> dict[str, float]:
        count = BATCH // processes
        kept = torch.arange(len(images)).view(parts, processes, count)[:, process].flatten()
        real = images[kept], labels[kept]
        found: dict[str, Tensor] = {}
        for loss in (prior.discriminator_loss, prior.generator_loss):
            found |= loss(generator, target, real, TrainDraws(SEED, STEP, count, images, process, processes))
        found.pop("features", None)
        return values(found)

    whole, halves = terms(0, 1), [terms(0, 2), terms(1, 2)]
    assert halves[0] != halves[1]
    assert {term: (halves[0][term] + halves[1][term]) / 2 for term in whole} == pytest.approx(whole, rel=1e-5)


def test_draws_of_processes_are_parts_of_the_whole() -> None:
    like = torch.zeros(1, dtype=torch.float64)

    def drawn(draws: TrainDraws) -> Tensor:
        return torch.cat([draws.normal(2), draws.uniform(2), draws.labels(4)[:, None], draws.normal(1)], dim=1)

    whole = drawn(TrainDraws(3, 1, 6, like))
    parts = [drawn(TrainDraws(3, 1, 2, like, process, 3)) for process in range(3)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)
    assert not torch.equal(whole[:, 0], whole[:, 5])  # every call gives others
    assert not torch.equal(drawn(TrainDraws(3, 2, 6, like)), whole)
    assert not torch.equal(drawn(TrainDraws(4, 1, 6, like)), whole)


def test_drawn_labels_are_uniform_over_all_classes() -> None:
    labels = TrainDraws(0, 0, 4000, torch.zeros(1)).labels(4)
    assert labels.dtype == torch.int64
    # 1000 each, with a standard deviation of 27.
    assert labels.bincount().tolist() == pytest.approx([1000] * 4, abs=140)
