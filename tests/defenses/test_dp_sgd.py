"""DP-SGD: random batches, gradients clipped per image, noise, and what they spend."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.core.outputs import Forward, Progress
from calor_hf.core.seeding import StepDraws
from calor_hf.defenses.dp_sgd import DPSGD, DPSGDConfig, PoissonBatches
from calor_hf.defenses.training_run import TrainingRun
from calor_hf.modeling import defend
from tests.tiny_models import tiny_base
from tests.training.small_task import defense_trainer

START = Progress("fit", 0, 10, 0.0, 1.0)
BATCH: dict[str, Any] = {"per_device_train_batch_size": 32, "save_strategy": "no", "max_steps": 2}


def test_batches_have_each_sample_with_the_same_probability_and_none_twice_a_step() -> None:
    batches = PoissonBatches(200, 40, parts=2)
    assert (batches.rate, batches.steps, len(batches)) == (0.4, 2, 4)  # 80 of 200 samples in a step
    counts, sizes = np.zeros(200), []
    for _ in range(250):
        drawn = list(batches)
        assert len(drawn) == 4
        for first, second in (drawn[:2], drawn[2:]):
            assert abs(len(first) - len(second)) <= 1
            assert not set(first) & set(second)
            sizes.append(len(first) + len(second))
            counts[[*first, *second]] += 1
    # Binomial: the size of a step has variance 200 · 0.4 · 0.6; a sample is in 500 · 0.4 of 500 steps.
    assert np.mean(sizes) == pytest.approx(80, abs=5 * math.sqrt(48 / 500))
    assert np.var(sizes) == pytest.approx(48, rel=0.35)
    assert abs(counts - 200).max() < 5 * math.sqrt(500 * 0.4 * 0.6)


def test_two_runs_draw_other_batches() -> None:
    assert list(PoissonBatches(1000, 100, 1)) != list(PoissonBatches(1000, 100, 1))


def test_an_image_that_does_not_count_does_not_change_the_loss_of_the_others() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [5.0, 1.0]])
    defense = DPSGD(DPSGDConfig())
    loss = defense.loss(Forward(logits, torch.tensor([1, -100])), START)["cross_entropy"]
    assert float(loss) == pytest.approx(-math.log(3 / 4) / 2)


def test_delta_of_a_whole_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"delta must be below 1 / training images = 0\.005, got 0\.01"):
        DPSGD(DPSGDConfig(delta=0.01)).batches(200, 32, 1)


def test_training_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "calor-hf\[dp\]"'):
        defense_trainer(tmp_path, "dp_sgd", "resnet", **BATCH).train()


class TestWithOpacus:
    """Tests that need Opacus, which the development environment does not have: .ci/dp."""

    @pytest.fixture(autouse=True)
    def opacus(self) -> None:
        pytest.importorskip("opacus", reason="opacus is not installed; .ci/dp runs these tests")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"fp16": True}, "in float32, got fp16"),
            ({"bf16": True}, "got bf16"),
            ({"per_device_train_batch_size": 16}, "batches of 32 or more, .* got per_device_train_batch_size=16"),
        ],
    )
    def test_arguments_that_break_the_bound_are_refused(
        self, changes: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match=message):
            defense_trainer(tmp_path, "dp_sgd", "resnet", **(BATCH | changes)).train()

    def test_several_processes_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"runs in one process, got 2"):
            started(tiny_base("resnet", 5), processes=2)

    @pytest.mark.parametrize("kind", ["vit", "resnet"])
    @pytest.mark.parametrize("parts", [1, 2])
    def test_a_step_without_noise_by_hand(self, kind: str, parts: int) -> None:
        """Gradients of single images, from passes of one image each, clipped and added up."""
        defense = started(without_dropout(kind), clip=0.5)
        planned(defense, noise=0.0)
        defense.batches(200, 40, parts)
        model = defense.run.model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()  # as the trainer does
        images, labels = torch.rand(6, 3, 32, 32), torch.tensor([0, 1, 2, 3, 4, 0])
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        expected, clipped = [torch.zeros_like(weight) for weight in weights], 0
        for i in range(6):
            model.zero_grad()
            F.cross_entropy(model(pixel_values=images[i : i + 1]).logits, labels[i : i + 1]).backward()
            gradient = [weight.grad.clone() for weight in weights if weight.grad is not None]
            norm = float(torch.cat([one.flatten() for one in gradient]).norm())
            clipped += norm > 0.5
            for total, one in zip(expected, gradient, strict=True):
                total += one * min(1, 0.5 / norm) / (40 * parts)
        assert clipped > 0
        model.zero_grad()
        for part, chosen in enumerate(torch.arange(6).chunk(parts)):
            step(defense, images[chosen], labels[chosen], parts, part == parts - 1)
        for weight, one in zip(weights, expected, strict=True):
            torch.testing.assert_close(weight.grad, one, atol=1e-6, rtol=1e-3)

    def test_noise_has_the_planned_deviation_and_is_not_that_of_the_seed(self) -> None:
        found = []
        for _ in range(2):
            torch.manual_seed(0)
            defense = started(without_dropout("vit"), clip=2.0)
            planned(defense, noise=3.0)
            defense.run.model.train()
            defense.batches(200, 40, 1)
            step(defense, torch.rand(4, 3, 32, 32), torch.full((4,), -100), 1, True)  # no image counts
            gradients = [weight.grad.flatten() for weight in defense.run.model.parameters() if weight.grad is not None]
            found.append(torch.cat(gradients))
        assert float(found[0].std()) == pytest.approx(3 * 2 / 40, rel=0.03)
        assert abs(float(found[0].mean())) < 5 * 0.15 / math.sqrt(len(found[0]))
        assert not torch.equal(*found)

    def test_the_noise_spends_the_budget(self) -> None:
        """With all images in every batch: a Gaussian mechanism, whose bound is a formula."""
        defense = started(without_dropout("vit"), epsilon=2.0, delta=1e-4)
        noise = defense._noise_for(steps=10, rate=1.0)
        orders = [1 + x / 10 for x in range(1, 100)] + list(range(12, 64))
        # Canonne, Kamath and Steinke, 2020, Proposition 12: from Rényi divergence α / (2 σ²) of each step.
        spent = min(
            10 * a / (2 * noise**2) + math.log1p(-1 / a) - math.log(1e-4 * a) / (a - 1) for a in orders
        )  # fmt: skip
        assert spent == pytest.approx(2.0, rel=0.002)
        assert defense._noise_for(10, 0.1) < noise / 2  # sampling hides

    def test_a_longer_resumed_run_is_refused_if_it_spends_more(self) -> None:
        defense = started(without_dropout("vit"))
        defense.batches(200, 40, 1)
        defense._plan(10)
        begun = defense.state_dict()
        again = started(without_dropout("vit"))
        again.load_state_dict(begun)
        again.batches(200, 40, 1)
        again._plan(10)
        assert again.state_dict()["noise"] == begun["noise"]
        with pytest.raises(ValueError, match=r"20 steps with the noise that this run began with spend epsilon="):
            again._plan(20)

    @pytest.mark.parametrize("kind", ["resnet", "vit"])
    def test_it_trains_saves_and_resumes(self, kind: str, tmp_path: Path) -> None:
        plan = BATCH | {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2, "max_steps": 4}
        trainer = defense_trainer(tmp_path, "dp_sgd", kind, dropout=0.0, **plan)
        before = [weight.detach().clone() for weight in trainer.model.parameters()]
        trainer.train()
        assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
        assert all(weight.requires_grad for weight in trainer.model.parameters())
        assert not any(hasattr(weight, "grad_sample") for weight in trainer.model.parameters())
        resumed = defense_trainer(tmp_path, "dp_sgd", kind, dropout=0.0, **plan)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert resumed.state.global_step == 4
        assert resumed.defense.state_dict()["steps"] == 4

    @pytest.mark.parametrize(("kind", "dropout"), [("swin", 0.0), ("vit", 0.1)])
    def test_networks_without_gradients_of_single_images_are_refused(
        self, kind: str, dropout: float, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match="is not available for each image"):
            defense_trainer(tmp_path / "all", "dp_sgd", kind, dropout=dropout, **BATCH).train()
        defense_trainer(tmp_path / "head", "dp_sgd", kind, dropout=dropout, head_only=True, **BATCH).train()


def without_dropout(kind: str) -> Any:
    base = tiny_base(kind, 5)
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return base


def started(base: Any, processes: int = 1, **settings: Any) -> Any:
    """Defense in a run of its own."""
    model = defend(base, "dp_sgd", **settings)
    model.in_training_run = True
    model.defense.begin(
        TrainingRun(
            model=model, scale=None, seed=0, make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
            learning_rate=lambda: 0.1, sum_over_processes=lambda value: value, log=lambda name, value: None,
            processes=processes,
        )
    )  # fmt: skip
    return model.defense


def planned(defense: Any, noise: float) -> None:
    """Give the noise instead of a budget."""
    defense._plan = lambda steps: defense._spent.update(noise=noise, steps=0)


def step(defense: Any, images: Tensor, labels: Tensor, parts: int, last: bool) -> None:
    """Take a batch as the trainer does."""
    draws = StepDraws.of_batch(seed=0, step=0, count=len(labels), batch_size=40)
    inputs = defense.on_batch({"pixel_values": images, "labels": labels}, draws, START)
    (defense.run.model(**inputs).loss / parts).backward()
    defense.on_gradients(parts, last)
