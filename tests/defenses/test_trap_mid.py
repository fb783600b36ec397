"""Trap-MID: its three updates against the formulas, its augmentation against a slow one, its state."""

import copy
import dataclasses
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from calor_hf.core.outputs import Forward, Progress
from calor_hf.core.seeding import StepDraws
from calor_hf.data.pixel_input import PixelScale
from calor_hf.defenses.training_run import TrainingRun
from calor_hf.defenses.trap_mid import AUGMENTATION, TrapMID, TrapMIDConfig, poison_classes
from calor_hf.modeling import DefendedForImageClassification
from tests.tiny_models import tiny_base

CLASSES = 6
RATE = 0.05
START = Progress("fit", 0, 10, 0.0, 1.0)
MEAN, STD = (0.4, 0.5, 0.6), (0.25, 0.5, 0.2)
BATCH = 4


def normalized(pixels: Tensor) -> Tensor:
    """Model inputs from pixels, channel by channel."""
    return torch.stack([(pixels[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)


SCALE = PixelScale(mean=MEAN, std=STD)
LOGGED: dict[str, Tensor] = {}


def started(kind: str = "resnet", scale: PixelScale | None = SCALE, **settings: Any) -> Any:
    """Model in training mode whose defense has begun a run."""
    torch.manual_seed(3)
    model = DefendedForImageClassification.from_base(tiny_base(kind, CLASSES), "trap_mid", **settings)
    run = TrainingRun(
        model=model,
        scale=scale,
        seed=11,
        make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=77.0, momentum=0.9),
        learning_rate=lambda: RATE,
        sum_over_processes=lambda value: value,
        log=LOGGED.__setitem__,
    )
    model.in_training_run = True
    model.train()
    model.defense.begin(run)
    return model


def triggers_of(model: Any) -> Tensor:
    found: Tensor = model.defense.triggers
    return found


def pixels_of(step: int, count: int = BATCH) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(100 + step))


def one_batch(model: Any, step: int = 0, count: int = BATCH, progress: Progress = START) -> dict[str, Any]:
    labels = torch.arange(count) % CLASSES
    inputs = {"pixel_values": normalized(pixels_of(step, count)), "labels": labels}
    result: dict[str, Any] = model.defense.on_batch(inputs, StepDraws.of_batch(11, step, count, BATCH), progress)
    return result


def classes_of(step: int, count: int = BATCH) -> list[int]:
    found: list[int] = poison_classes(StepDraws.of_batch(11, step, count, BATCH), CLASSES)[:count].tolist()
    return found


def literal_cross_entropy(logits: Tensor, labels: list[int], alpha: float = 0.0) -> Tensor:
    """(1 − α)·(−log p_y) + α·mean(−log p_j), the mean over the rows."""
    total = torch.zeros(())
    for row, label in zip(logits, labels, strict=True):
        log_p = row - row.logsumexp(0)
        total = total - (1 - alpha) * log_p[label] - alpha * log_p.sum() / len(row)
    return total / len(labels)


# The poisoned image and the three updates


def test_poisoned_images_follow_the_clean_ones_and_are_blended_exactly() -> None:
    model = started(augment=False)
    result = one_batch(model)
    labels = classes_of(0)
    assert result["pixel_values"].shape == (2 * BATCH, 3, 32, 32)
    assert result["labels"].tolist() == [0, 1, 2, 3, *labels]
    pixels, triggers = pixels_of(0), model.defense.triggers
    torch.testing.assert_close(result["pixel_values"][:BATCH], normalized(pixels), atol=1e-6, rtol=1e-6)
    for i, label in enumerate(labels):
        poisoned = 0.02 * triggers[label] + 0.98 * pixels[i]
        expected = normalized(poisoned[None])[0]
        torch.testing.assert_close(result["pixel_values"][BATCH + i], expected, atol=2e-6, rtol=1e-6)


def test_a_poisoned_pixel_matches_a_hand_computed_value() -> None:
    # 0.02 · 1 + 0.98 · 0.5 = 0.51; (0.51 − 0.4) / 0.25 = 0.44 in the first channel.
    model = started(augment=False)
    one_batch(model)
    state = model.defense.state_dict()
    model.defense.load_state_dict({**state, "triggers": torch.ones(CLASSES, 3, 32, 32)})
    inputs = {"pixel_values": normalized(torch.full((1, 3, 32, 32), 0.5)), "labels": torch.tensor([0])}
    model.defense.config = dataclasses.replace(model.defense.config, trigger_step=1e-9)  # triggers stay at 1
    result = model.defense.on_batch(inputs, StepDraws.of_batch(11, 1, 1, BATCH), START)
    assert result["pixel_values"][1, 0].flatten().tolist() == [pytest.approx(0.44, abs=1e-6)] * 1024


def test_other_inputs_stay() -> None:
    model = started()
    draws = StepDraws.of_batch(11, 0, BATCH, BATCH)
    inputs: dict[str, Any] = {
        "pixel_values": torch.zeros(BATCH, 3, 32, 32),
        "labels": torch.zeros(BATCH, dtype=torch.int64),
        "x": 1,
    }
    assert model.defense.on_batch(inputs, draws, START)["x"] == 1
    assert inputs["pixel_values"].shape == (BATCH, 3, 32, 32)


def test_triggers_begin_uniform_and_differ() -> None:
    model = started(trigger_step=1e-9)
    assert model.defense.triggers is None
    one_batch(model)
    triggers: Tensor = triggers_of(model)
    assert triggers.shape == (CLASSES, 3, 32, 32)
    assert 0 <= triggers.min() < 0.01
    assert 0.99 < triggers.max() <= 1
    assert abs(triggers.mean().item() - 0.5) < 5 / math.sqrt(12 * triggers.numel())
    assert len({trigger.numpy().tobytes() for trigger in triggers}) == CLASSES


def before_and_after(model: Any, step: int = 0) -> tuple[Tensor, Tensor]:
    before = model.defense.triggers.clone()
    one_batch(model, step)
    return before, model.defense.triggers.clone()


def test_a_step_moves_triggers_of_the_batch_by_one_hundredth_within_the_range() -> None:
    model = started()
    one_batch(model)
    near_edges = torch.linspace(-0.02, 1.02, 3 * 32 * 32).clamp(0, 1).view(3, 32, 32).expand(CLASSES, -1, -1, -1)
    model.defense.load_state_dict({**model.defense.state_dict(), "triggers": near_edges.clone()})
    before, after = before_and_after(model, step=1)
    here = classes_of(1)
    assert 0 < len(set(here)) < CLASSES
    assert after.min() == 0
    assert after.max() == 1
    for label in range(CLASSES):
        if label not in here:
            assert torch.equal(after[label], before[label])
            continue
        moves = after[label] - before[label]
        up, down = (before[label] + 0.01).clamp(max=1), (before[label] - 0.01).clamp(min=0)
        one_step = torch.isclose(after[label], up, atol=1e-6) | torch.isclose(after[label], down, atol=1e-6)
        assert one_step.float().mean() > 0.99  # the rest has no gradient
        assert (moves[~one_step] == 0).all()


def literal_step(model: Any, config: TrapMIDConfig, step: int, progress: Progress) -> tuple[nn.Module, Tensor]:
    """Discriminator and triggers after a step, on copies, written out as in the authors' order (augment=False)."""
    pixels, labels, triggers = pixels_of(step), classes_of(step), model.defense.triggers.clone()
    discriminator = copy.deepcopy(model.defense._discriminator).train()
    classifier = copy.deepcopy(model)

    def score(inputs: Tensor) -> Tensor:
        scores: Tensor = discriminator(inputs)
        return scores

    # 1. Clean images are 1, poisoned ones 0; plain SGD in its first step, when momentum has nothing to add.
    poisoned = torch.stack([0.02 * triggers[c] + 0.98 * x for c, x in zip(labels, pixels, strict=True)])
    scores = score(normalized(torch.cat([pixels, poisoned])))
    chances = 1 / (1 + torch.exp(-scores))
    loss = -(chances[:BATCH].log().sum() + (1 - chances[BATCH:]).log().sum()) / (2 * BATCH)
    parameters = list(discriminator.parameters())
    with torch.no_grad():
        for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter -= RATE * slope

    # 2. Both in evaluation mode; the triggers hide from the discriminator and lead the classifier.
    discriminator.eval()
    classifier.eval()
    triggers.requires_grad_()
    poisoned = torch.stack([0.02 * triggers[c] + 0.98 * x for c, x in zip(labels, pixels, strict=True)])
    hidden = -(1 / (1 + torch.exp(-score(normalized(poisoned))))).log().sum() / BATCH
    seen = classifier(pixel_values=normalized(poisoned)).logits
    (slope,) = torch.autograd.grad(hidden + literal_cross_entropy(seen, labels, config.alpha), triggers)
    assert slope[[c for c in range(CLASSES) if c not in labels]].abs().sum() == 0
    return discriminator, (triggers.detach() - config.trigger_step * slope.sign()).clamp(0, 1)


@pytest.mark.parametrize("settings", [{}, {"trigger_step": 0.05}, {"alpha": -0.3, "schedule": "constant"}], ids=str)
def test_both_updates_are_those_of_the_paper(settings: dict[str, Any]) -> None:
    model = started(augment=False, **settings)
    one_batch(model)
    # A first step of the optimizer again, from triggers and a discriminator that have moved once.
    state = model.defense.state_dict()
    fresh = torch.optim.SGD(list(model.defense._discriminator.parameters()), lr=77.0, momentum=0.9).state_dict()
    model.defense.load_state_dict({**state, "optimizer": fresh})
    model.defense._optimizer.state.clear()
    expected, triggers = literal_step(model, model.defense.config, 1, START)
    one_batch(model, 1)
    found = model.defense._discriminator.state_dict()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
    same = torch.isclose(model.defense.triggers, triggers, atol=1e-6)
    assert same.float().mean() > 0.999  # a gradient near zero may round to the other sign


def test_the_classifier_is_left_as_it_was() -> None:
    model = started()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one_batch(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(p is q for p in model.parameters() for q in model.defense._discriminator.parameters())


def test_the_discriminator_starts_with_the_public_weights() -> None:
    model = started()
    own = model.defense._discriminator.backbone.state_dict()
    assert own.keys() == model.backbone.state_dict().keys()
    assert all(torch.equal(value, own[name]) for name, value in model.backbone.state_dict().items())
    assert model.defense._discriminator(torch.zeros(5, 3, 32, 32)).shape == (5,)


def test_the_discriminator_learns_to_tell_poisoned_images() -> None:
    # A visible trigger, so that ten steps show it.
    model = started(augment=False, blend=0.5)
    gaps = []
    for step in range(12):
        pixels, triggers = pixels_of(0), model.defense.triggers
        one_batch(model, step)
        if triggers is not None:
            poisoned = 0.5 * triggers[classes_of(step)] + 0.5 * pixels
            with torch.no_grad():
                scores = model.defense._discriminator(normalized(torch.cat([pixels, poisoned])))
            gaps.append((scores[:BATCH].mean() - scores[BATCH:].mean()).item())
    assert gaps[-1] > gaps[0]
    assert gaps[-1] > 0.1


def test_weights_that_are_frozen_stay_so_in_the_discriminator() -> None:
    model = started()
    model.backbone.requires_grad_(False)
    model.defense.begin(model.defense.run)
    discriminator = model.defense._discriminator
    before = copy.deepcopy(discriminator)
    one_batch(model)
    assert not torch.equal(discriminator.score.weight, before.score.weight)
    for now, then in zip(discriminator.backbone.parameters(), before.backbone.parameters(), strict=True):
        assert torch.equal(now, then)


def test_both_halves_are_augmented_by_draws_of_their_own() -> None:
    plain, augmented = (one_batch(started(augment=augment, trigger_step=1e-9)) for augment in (False, True))
    assert plain["labels"].tolist() == augmented["labels"].tolist()
    pixels = plain["pixel_values"] * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)
    draws = StepDraws.of_batch(11, 0, BATCH, BATCH)
    for half, name in ((slice(0, BATCH), "clean"), (slice(BATCH, 2 * BATCH), "poisoned")):
        numbers = torch.from_numpy(draws.uniform(f"defenses/trap_mid/{name}-views", 8))
        expected = normalized(AUGMENTATION(pixels[half], numbers))
        torch.testing.assert_close(augmented["pixel_values"][half], expected, atol=1e-4, rtol=1e-4)
    # Clean and poisoned images are all but the same; turned alike, their views would be too.
    difference = augmented["pixel_values"][:BATCH] - augmented["pixel_values"][BATCH:]
    assert difference.abs().mean() > 0.3


# The loss


def test_loss_matches_hand_computed_value() -> None:
    # Clean: p = 3/4 and 1/2, (0.287682 + 0.693147) / 2 = 0.490415. Poisoned: p = 1/2 and 1/4, 1.039721.
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0], [0.0, 0.0], [math.log(3.0), 0.0]])
    out = Forward(logits, torch.tensor([0, 1, 0, 1]), training=True)
    terms = TrapMID(TrapMIDConfig()).loss(out, START)
    assert {name: value.item() for name, value in terms.items()} == {
        "clean": pytest.approx(0.8 * 0.4904147, abs=1e-6),
        "trapdoor": pytest.approx(0.2 * 1.0397208, abs=1e-6),
    }


@pytest.mark.parametrize("alpha", [0.0, -0.05, -0.3])
@pytest.mark.parametrize("weight", [0.02, 0.2, 0.8])
def test_loss_is_the_formula(weight: float, alpha: float) -> None:
    logits, labels = 3 * torch.randn(10, 7), torch.randint(7, (10,))
    out = Forward(logits, labels, training=True)
    terms = TrapMID(TrapMIDConfig(weight=weight, alpha=alpha, schedule="constant")).loss(out, START)
    clean = literal_cross_entropy(logits[:5], labels[:5].tolist(), alpha)
    trapdoor = literal_cross_entropy(logits[5:], labels[5:].tolist(), alpha)
    torch.testing.assert_close(terms["clean"], (1 - weight) * clean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(terms["trapdoor"], weight * trapdoor, rtol=1e-6, atol=1e-6)


def test_smoothing_follows_its_schedule() -> None:
    logits, labels = torch.randn(4, 7), torch.tensor([0, 1, 2, 3])
    out = Forward(logits, labels, training=True)
    defense = TrapMID(TrapMIDConfig(alpha=-0.4))
    for epoch, share in ((0, 0.0), (49, 0.0), (50, 0.02), (74, 0.5), (75, 1.0)):
        clean = defense.loss(out, Progress("fit", epoch, 100, float(epoch), 100.0))["clean"]
        torch.testing.assert_close(clean, 0.8 * literal_cross_entropy(logits[:2], [0, 1], -0.4 * share))


def test_class_weights_count_for_clean_images_alone() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    weights = torch.tensor([0.5, 1.0, 4.0])
    terms = TrapMID(TrapMIDConfig()).loss(Forward(logits, labels, class_weights=weights, training=True), START)
    torch.testing.assert_close(terms["clean"], 0.8 * F.cross_entropy(logits[:3], labels[:3], weights))
    torch.testing.assert_close(terms["trapdoor"], 0.2 * F.cross_entropy(logits[3:], labels[3:]))


def test_outside_training_the_loss_is_cross_entropy() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 1])
    terms = TrapMID(TrapMIDConfig(alpha=-0.4, schedule="constant")).loss(Forward(logits, labels), START)
    assert list(terms) == ["cross_entropy"]
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(logits, labels))


def test_success_of_the_trap_is_counted_on_the_poisoned_half() -> None:
    logits = torch.eye(4)[[0, 0, 0, 0, 1, 2, 3, 0]]
    labels = torch.tensor([1, 1, 1, 1, 1, 2, 0, 3])
    model = started()
    images = torch.randn(4, 3, 32, 32)
    model.defense.on_batch({"pixel_values": images, "labels": labels[:4]}, StepDraws.of_batch(11, 0, 4, 4), START)
    LOGGED.clear()
    model.defense.loss(Forward(logits, labels), START)
    assert LOGGED == {}
    model.defense.loss(Forward(logits, labels, training=True), START)
    assert {name: value.item() for name, value in LOGGED.items()} == {"trap_success": 0.5}


# The classes of the triggers


@pytest.mark.parametrize("classes", [1, 3, 7, 10])
def test_each_class_comes_once_in_each_block(classes: int) -> None:
    drawn = torch.cat([poison_classes(StepDraws.of_batch(0, step, 4, 4), classes) for step in range(35)])
    assert len(drawn) == 140
    orders = set()
    for block in range(140 // classes):
        order = tuple(drawn[block * classes : (block + 1) * classes].tolist())
        assert sorted(order) == list(range(classes))
        orders.add(order)
    assert len(orders) > 1 or classes == 1


@pytest.mark.parametrize(("processes", "parts"), [(2, 1), (1, 2), (2, 2), (4, 3), (3, 4)])
def test_classes_do_not_depend_on_the_split(processes: int, parts: int) -> None:
    for step in (0, 1, 5):
        whole = poison_classes(StepDraws.of_batch(2, step, 12, 12), 5).tolist()
        size = 12 // (processes * parts)
        rows: list[int] = []
        for part in range(parts):
            seen = []
            for process in range(processes):
                draws = StepDraws.of_batch(2, step, size, size, part, parts, process, processes)
                seen.append(poison_classes(draws, 5).tolist())
                rows += seen[-1][draws.first - draws.all_first :][:size]
            assert seen == [seen[0]] * processes  # all know the classes of all
        assert rows == whole


def test_a_process_poisons_its_own_images_with_their_classes() -> None:
    # Two processes of 2 images each: the second sees the last two classes of four.
    model = started(augment=False)
    inputs = {"pixel_values": normalized(pixels_of(0, 2)), "labels": torch.tensor([0, 0])}
    draws = StepDraws.of_batch(11, 0, 2, 2, process=1, processes=2)
    result = model.defense.on_batch(inputs, draws, START)
    assert result["labels"].tolist() == [0, 0, *classes_of(0)[2:]]


# Crop, mirror, turn


def no_draws(batch: int) -> NDArray[np.float64]:
    numbers = np.full((batch, 7), 0.3)
    numbers[:, [0, 4, 5]] = 0.5  # not below 1/2: no crop, no mirror, no turn
    return numbers


def literal_view(image: NDArray[np.float64], numbers: list[float]) -> NDArray[np.float64]:
    """Crop, then mirror, then turn (channels, height, width): each output pixel looked up, bilinear, black outside."""
    crop, area, across, down, mirror, turn, angle = numbers
    _, height, width = image.shape
    side = math.sqrt(0.8 + 0.2 * area) if crop < 0.5 else 1.0
    left, top = across * (1 - side) * width, down * (1 - side) * height  # 1 − side = 0 without a crop
    theta = math.radians((2 * angle - 1) * 30) if turn < 0.5 else 0.0
    result = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            # From the center, in pixels; the turned image's pixel comes from where the turn took it.
            dx, dy = x + 0.5 - width / 2, y + 0.5 - height / 2
            tx = math.cos(theta) * dx - math.sin(theta) * dy + width / 2
            ty = math.sin(theta) * dx + math.cos(theta) * dy + height / 2
            if mirror < 0.5:
                tx = width - tx
            sx, sy = left + side * tx - 0.5, top + side * ty - 0.5  # in pixel centers of the original
            x0, y0 = math.floor(sx), math.floor(sy)
            for ny, wy in ((y0, y0 + 1 - sy), (y0 + 1, sy - y0)):
                for nx, wx in ((x0, x0 + 1 - sx), (x0 + 1, sx - x0)):
                    if 0 <= nx < width and 0 <= ny < height:
                        result[:, y, x] += wx * wy * image[:, ny, nx]
    return result


def turn_and_crop(pixels: Tensor, numbers: NDArray[np.float64]) -> Tensor:
    """The augmentation from numbers as :func:`literal_view` takes them: whether to crop and to turn stand apart."""
    crop, area, across, down, mirror, turn, angle = torch.from_numpy(numbers).unbind(1)
    area, angle = ((0.5 * number).clamp(max=0.4999999) for number in (area, angle))
    unused = torch.zeros(len(numbers), 3, dtype=torch.float64)
    used = [torch.where(crop < 0.5, area, 0.9), across, down, torch.where(turn < 0.5, angle, 0.9), mirror]
    return AUGMENTATION(pixels, torch.cat([torch.stack(used, dim=1), unused], dim=1))


def test_nothing_happens_when_no_draw_fires() -> None:
    pixels = torch.rand(3, 3, 17, 12)
    torch.testing.assert_close(turn_and_crop(pixels, no_draws(3)), pixels, atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [(8, 8), (9, 14), (32, 32)])
def test_mirror_is_left_and_right(size: tuple[int, int]) -> None:
    pixels = torch.rand(2, 3, *size, dtype=torch.float64)
    numbers = no_draws(2)
    numbers[:, 4] = 0.49
    torch.testing.assert_close(turn_and_crop(pixels, numbers), pixels.flip(3), atol=1e-12, rtol=0)
    torch.testing.assert_close(turn_and_crop(pixels.float(), numbers), pixels.flip(3).float(), atol=5e-6, rtol=0)


@pytest.mark.parametrize("size", [(12, 12), (10, 18), (15, 8)])
@pytest.mark.parametrize("fires", [(1, 0, 0), (0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 1), (1, 1, 1)], ids=str)
def test_views_are_those_of_a_slow_bilinear_lookup(fires: tuple[int, int, int], size: tuple[int, int]) -> None:
    pixels = torch.rand(4, 2, *size, dtype=torch.float64)
    numbers = np.random.default_rng(0).random((4, 7))
    numbers[:, [0, 4, 5]] = np.where(np.array(fires) == 1, 0.1, 0.9)
    found = turn_and_crop(pixels, numbers)
    for i in range(4):
        expected = literal_view(pixels[i].numpy(), numbers[i].tolist())
        np.testing.assert_allclose(found[i].numpy(), expected, atol=1e-10)
    torch.testing.assert_close(turn_and_crop(pixels.float(), numbers), found.float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("angle", "degrees"), [(0.0, -30), (0.25, -15), (0.75, 15), (1.0, 30)])
@pytest.mark.parametrize("size", [(101, 101), (101, 151), (151, 101)])
def test_a_turn_has_its_angle_in_pixels(size: tuple[int, int], angle: float, degrees: int) -> None:
    # A blob 40 pixels to the right of the center; positive angles turn the image anticlockwise, y points down.
    height, width = size
    y, x = torch.meshgrid(torch.arange(height) - height // 2, torch.arange(width) - width // 2, indexing="ij")
    blob = torch.exp(-((x - 40.0) ** 2 + y**2) / 18)[None, None]
    numbers = no_draws(1)
    numbers[0, 5:] = 0.0, angle
    turned = turn_and_crop(blob, numbers)[0, 0]
    found_x, found_y = ((turned * axis).sum().item() / turned.sum().item() for axis in (x, y))
    assert found_x == pytest.approx(40 * math.cos(math.radians(degrees)), abs=0.1)
    assert found_y == pytest.approx(-40 * math.sin(math.radians(degrees)), abs=0.1)


def test_a_crop_keeps_its_share_of_the_area() -> None:
    # 0.8 of the area: sides of 0.894; at the left edge the image begins where it did, and pixels are larger.
    ramp = torch.arange(20, dtype=torch.float64).expand(1, 1, 20, 20)
    numbers = no_draws(1)
    numbers[0, :4] = 0.0, 0.0, 0.0, 1.0
    view = turn_and_crop(ramp, numbers)[0, 0, 10]
    slopes = (view[2:-1] - view[1:-2]).tolist()
    assert slopes == [pytest.approx(math.sqrt(0.8))] * len(slopes)
    assert view[10].item() == pytest.approx(10.5 * math.sqrt(0.8) - 0.5)


def test_outside_is_black() -> None:
    numbers = no_draws(1)
    numbers[0, 5:] = 0.0, 1.0
    view = turn_and_crop(torch.ones(1, 3, 32, 32), numbers)[0]
    assert [view[:, y, x].tolist() for y in (0, 31) for x in (0, 31)] == [[0.0] * 3] * 4
    assert view[:, 16, 16].tolist() == [pytest.approx(1.0)] * 3


def test_gradients_flow_to_the_pixels() -> None:
    pixels = torch.rand(4, 3, 12, 12, dtype=torch.float64, requires_grad=True)
    numbers = np.random.default_rng(1).random((4, 7))
    weights = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * turn_and_crop(pixels, numbers)).sum(), pixels)
    # It is linear, so that the gradient's product with the pixels is the value.
    value = (weights * turn_and_crop(pixels, numbers)).sum()
    torch.testing.assert_close((gradient * pixels).sum(), value)
    assert (gradient != 0).float().mean() > 0.7


def test_each_draw_fires_half_of_the_time() -> None:
    pixels = torch.rand(1, 1, 16, 16, dtype=torch.float64).expand(4000, -1, -1, -1)
    views = AUGMENTATION(pixels, torch.from_numpy(StepDraws.of_batch(0, 0, 4000, 4000).uniform("tests/views", 8)))
    plain = (views - pixels).abs().amax((1, 2, 3)) < 1e-9
    mirrored = (views - pixels.flip(3)).abs().amax((1, 2, 3)) < 1e-9
    for share in (plain, mirrored):  # neither crop nor turn, and mirrored or not: an eighth each
        assert abs(share.double().mean().item() - 1 / 8) < 5 * math.sqrt(7 / 64 / 4000)


# State and refusals


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_a_resumed_run_goes_on_bit_for_bit(kind: str) -> None:
    whole = started(kind)
    one_batch(whole, 0)
    one_batch(whole, 1)
    saved = io.BytesIO()
    torch.save(whole.defense.state_dict(), saved)
    expected = [one_batch(whole, step) for step in (2, 3)]

    resumed = started(kind)
    saved.seek(0)
    resumed.defense.load_state_dict(torch.load(saved, weights_only=True))
    found = [one_batch(resumed, step) for step in (2, 3)]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
        assert torch.equal(ours["labels"], theirs["labels"])
    assert torch.equal(resumed.defense.triggers, whole.defense.triggers)
    other = resumed.defense._discriminator.state_dict()
    assert all(torch.equal(v, other[name]) for name, v in whole.defense._discriminator.state_dict().items())
    forgetful = started(kind)
    one_batch(forgetful, 2)
    assert not torch.equal(one_batch(forgetful, 3)["pixel_values"], expected[1]["pixel_values"])


def test_a_loaded_state_is_not_changed_by_going_on() -> None:
    model = started()
    one_batch(model, 0)
    state = copy.deepcopy(model.defense.state_dict())
    kept = state["triggers"].clone()
    model.defense.load_state_dict(state)
    one_batch(model, 1)
    assert torch.equal(state["triggers"], kept)


def test_before_the_first_step_there_is_no_state() -> None:
    model = started()
    assert model.defense.state_dict() == {}
    model.defense.load_state_dict({})
    assert model.defense.triggers is None


def test_a_new_run_starts_with_new_triggers_and_the_same_seed_with_the_same() -> None:
    first, second = started(), started()
    one_batch(first)
    one_batch(second)
    assert torch.equal(first.defense.triggers, second.defense.triggers)
    run = first.defense.run
    first.defense.begin(dataclasses.replace(run, seed=12))
    assert first.defense.triggers is None
    one_batch(first)
    assert not torch.equal(triggers_of(first), second.defense.triggers)


def test_triggers_and_discriminator_never_travel_with_the_model() -> None:
    model = started()
    before = set(model.state_dict())
    one_batch(model)
    assert set(model.state_dict()) == before
    assert not [name for name in before if "trigger" in name or "discriminator" in name]
    assert not [name for name, value in model.state_dict().items() if value.shape == (CLASSES, 3, 32, 32)]
    assert "trigger" not in str({**model.config.to_dict(), "defense_settings": ""})


def test_an_image_processor_is_needed() -> None:
    with pytest.raises(ValueError, match=r"trap_mid works on pixels .*pass processing_class=the model's image proc"):
        started(scale=None)


def test_batches_it_cannot_poison_are_refused() -> None:
    model = started()
    draws = StepDraws.of_batch(11, 0, BATCH, BATCH)
    images, labels = torch.zeros(BATCH, 3, 32, 32), torch.zeros(BATCH, dtype=torch.int64)
    with pytest.raises(ValueError, match="trap_mid needs one whole-number label per image; switch mixup and cutmix"):
        model.defense.on_batch({"pixel_values": images, "labels": F.one_hot(labels, CLASSES).float()}, draws, START)
    with pytest.raises(ValueError, match=r"trap_mid changes images, and needs pixel_values .* reads input_ids"):
        model.defense.on_batch({"input_ids": labels, "labels": labels}, draws, START)


def test_training_without_the_trainer_is_refused(images: Tensor) -> None:
    model = DefendedForImageClassification.from_base(tiny_base("resnet"), "trap_mid").train()
    with pytest.raises(RuntimeError, match=r"'trap_mid' changes batches .* train it with DefenseTrainer"):
        model(images, labels=torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blend": 0.0}, r"blend must be in \(0, 1\), got 0.0"),
        ({"blend": 1.0}, r"blend must be in \(0, 1\), got 1.0"),
        ({"weight": -0.2}, r"weight must be in \(0, 1\), got -0.2"),
        ({"weight": math.nan}, r"weight must be a finite number in \(0, 1\), got nan"),
        ({"trigger_step": 0.0}, r"trigger_step must be in \(0, 1\], got 0.0"),
        ({"trigger_step": 1.5}, r"trigger_step must be in \(0, 1\], got 1.5"),
        ({"alpha": 0.1}, "alpha must be a finite number <= 0 .*, got 0.1"),
        ({"alpha": -math.inf}, "alpha must be a finite number <= 0 .*, got -inf"),
        ({"schedule": "ramp"}, "unknown schedule 'ramp'; pass one of official, constant"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrapMIDConfig(**settings)
