"""What studies work with: models that are trained once and kept, an evaluation model, a prior, images, and audits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from calor_hf.auditing import PrivateImages, audit, run_attack
from calor_hf.auditing.networks import Network
from calor_hf.auditing.plan import plan_attacks
from calor_hf.cli.audit import private_images_of
from calor_hf.core.processes import process_state
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.data.loading import Splits, load_splits
from calor_hf.defenses import DEFENSES
from calor_hf.defenses.low_rank import LowRankDefense
from calor_hf.generators import Generator, load_generator
from calor_hf.recipes.common import check_classes
from calor_hf.recipes.runs import Outcome, Runs
from calor_hf.recipes.train_arguments import parse
from calor_hf.targets.hf_target import HFTarget
from examples.paper.leakage import leakage
from examples.paper.trace import Trace, traced

if TYPE_CHECKING:
    from examples.paper.study import AttackedConfig

QUICK_WORDS = ("--num-train-epochs", "2", "--adapt-epochs", "1", "--max-accuracy-drop", "100", "--warmup-steps", "0")
# For models that start from the one trained on other people; found for docs/results/comparison.md.
TUNING_WORDS = (
    "--num-train-epochs", "20", "--learning-rate", "1e-3", "--head-learning-rate", "6e-3", "--lr-scheduler-type",
    "cosine", "--weight-decay", "0.01", "--per-device-train-batch-size", "32", "--per-device-eval-batch-size", "256",
    "--adapt-learning-rate", "5e-4", "--max-accuracy-drop", "1.0",
)  # fmt: skip
PUBLIC_IDENTITIES = 128


class TrainingFailedError(RuntimeError):
    """A training came to a bad end, such as too much accuracy lost."""


@dataclass(frozen=True)
class LabOptions:
    """Where models, people and prior come from.

    Attributes:
        dataset: Private images, as for ``calor-hf train``; None: the drawn faces.
        prior: Folder or Hub id of a trained prior, or ``renderer``, the oracle of the drawn faces.
        evaluation_model: Folder or Hub id; None: one is trained, for the drawn faces alone.
        models: Folder of the trained models, which studies may share; None: inside the study's own.
        train_words: Options of ``calor-hf train`` for every model.
        launcher: Words in front of a training, such as ``accelerate launch``.
        seed: Of the attacks and of every draw outside training.
        quick: Train next to nothing: a try.
    """

    dataset: str | None = None
    prior: str = "renderer"
    evaluation_model: str | None = None
    models: Path | None = None
    train_words: tuple[str, ...] = ()
    launcher: str = ""
    seed: int = 0
    quick: bool = False

    def described(self) -> dict[str, Any]:
        """What the results depend on."""
        return {
            "dataset": self.dataset,
            "prior": self.prior,
            "evaluation_model": self.evaluation_model,
            "train_options": list(self.train_words),
            "seed": self.seed,
            "quick": self.quick,
        }


class Lab:
    """Models, judge, prior and images of one study; each is made when it is first asked for.

    Args:
        folder: Of the study; models lie in ``folder / "models"`` unless the options say where, audits in
            ``folder / "audits"``.
        options: Where everything comes from.
        needs: What the study needs, see :class:`~examples.paper.study.Study`.

    Raises:
        ValueError: options that ``calor-hf train`` refuses, or a prior or judge missing for data of the user's.
    """

    def __init__(self, folder: Path, options: LabOptions, needs: Sequence[str] = ()) -> None:
        self.folder, self.options = folder, options
        self.models = options.models or folder / "models"
        quick = QUICK_WORDS if options.quick else ()
        drawn = ("--num-identities", "4") if options.quick and options.dataset is None else ()
        data = () if options.dataset is None else ("--dataset", options.dataset)
        self.words = [*drawn, *quick, *data, *options.train_words]
        self._arguments = parse(self.words)
        if options.dataset is not None:
            if options.prior == "renderer" and "prior" in needs:
                raise ValueError(
                    "--prior renderer draws the drawn faces; for --dataset pass a prior trained on public images of "
                    "the same kind (calor-hf prior)"
                )
            if options.evaluation_model is None and "evaluation_model" in needs:
                raise ValueError(
                    "no evaluation model: train one with calor-hf train --role evaluation --model ANOTHER_ARCHITECTURE "
                    f"--dataset {options.dataset}, and pass it as --evaluation-model"
                )

    # Models

    @property
    def embedded(self) -> bool:
        """Whether the people are the drawn ones."""
        return self.options.dataset is None

    @property
    def own_base(self) -> bool:
        """Whether the user named the base model."""
        return self._arguments[0].model is not None

    @property
    def epochs(self) -> float:
        """Of the first stage of training."""
        return float(self._arguments[3].num_train_epochs)

    @property
    def identities(self) -> int:
        """Number of the drawn people."""
        return int(self._arguments[1].num_identities)

    def train(
        self, defense: str, seed: int, *, rank: int | None = None, activation: str | None = None,
        suffix: str = "", words: Sequence[str] = (), keep_checkpoints: bool = False,
    ) -> tuple[str, dict[str, Any]]:  # fmt: skip
        """Folder and numbers of a trained model; one that is there is not trained again.

        Args:
            defense: Registered name.
            seed: Of the training.
            rank: Of a low-rank head; left out for a defense without one.
            activation: Inside it; None: Tanh.
            suffix: Of the name, for what ``words`` change.
            words: More options of ``calor-hf train``.
            keep_checkpoints: Leave the checkpoints where they are.

        Raises:
            TrainingFailedError: training ended badly.
        """
        options = ["--defense", defense, "--seed", str(seed)]
        name = defense
        if rank is not None and issubclass(DEFENSES.get(defense), LowRankDefense):
            name += f"-{activation or 'tanh'}-{rank}"
            options += ["--rank", str(rank), "--activation", activation or "tanh"]
        name += f"{suffix}-seed{seed}"
        outcome = self._runs(name, [*options, *words], keep_checkpoints)
        return str(self.models / "runs" / name), trained_numbers(name, outcome)

    @cached_property
    def _runs(self) -> Runs:
        return Runs(self.models, self.words, self.options.launcher, resume=True)

    def public_base(self) -> str:
        """A model of other drawn people than the private ones, to start from.

        Raises:
            ValueError: the people are not the drawn ones.
            TrainingFailedError: training ended badly.
        """
        if not self.embedded:
            raise ValueError("pre-training on public people is there for the drawn faces alone; pass --model instead")
        identities = "4" if self.options.quick else str(PUBLIC_IDENTITIES)
        common = ["--public-faces", "--num-identities", identities, "--report-to", "none"]
        runs = Runs(self.models / "public", [*common, *(QUICK_WORDS if self.options.quick else ())], resume=True)
        outcome = runs("base", ["--defense", "none"])
        trained_numbers("base", outcome)
        return str(self.models / "public" / "runs" / "base")

    # Attacks and judges

    def target(self, source: str) -> HFTarget:
        """A saved model as a target on this machine's device."""
        target = HFTarget.from_pretrained(source)
        target.module.to(process_state().device)
        return target

    def prior(self, target: HFTarget) -> Generator[Any]:
        """The generator, at the target's size."""
        return load_generator(self.options.prior, image_size=target.image_size[0]).to(process_state().device).eval()

    def evaluation_model(self) -> str:
        """Folder or Hub id of the evaluation model; trained once, where none was given.

        Raises:
            TrainingFailedError: training ended badly.
        """
        return self._evaluate_adapting

    @cached_property
    def _evaluate_adapting(self) -> str:
        if self.options.evaluation_model is not None:
            return self.options.evaluation_model
        quick = ["--num-train-epochs", "1"] if self.options.quick else []
        common = ["--num-identities", str(self.identities), "--report-to", "none", *quick]
        outcome = Runs(self.models / "evaluation_model", common, resume=True)(
            "evaluation_model", ["--role", "evaluation"]
        )
        trained_numbers("evaluation_model", outcome)
        return str(self.models / "evaluation_model" / "runs" / "evaluation_model")

    def splits(self, target: HFTarget) -> Splits:
        """The private images, for a target.

        Raises:
            ValueError: the target has other classes.
        """
        splits = self.splits_at(target.image_size[0])
        check_classes(splits, target)
        return splits

    def splits_at(self, side: int) -> Splits:
        """The private images; drawn faces are drawn with so many pixels."""
        if side not in self._splits:
            self._splits[side] = load_splits(self.options.dataset, num_identities=self.identities, image_size=side)
        return self._splits[side]

    @cached_property
    def _splits(self) -> dict[int, Splits]:
        return {}

    def private(self, target: HFTarget, identities: int | None = None) -> PrivateImages:
        """Training images of the first people (None: of all), and test images of all."""
        labels = self.labels(target, target.num_classes if identities is None else identities)
        return private_images_of(self.splits(target), target, labels, self.options.dataset)

    def labels(self, target: HFTarget, identities: int) -> list[int]:
        """The first classes, at most all."""
        return list(range(min(identities, target.num_classes)))

    def viewer(self, source: str) -> Callable[[Tensor], Tensor]:
        """A saved classifier as a function from (n, 3, height, width) in [0, 1] or bytes to (n, classes) logits."""
        network = Network.of_target(self.target(source), source)

        def look(images: Tensor) -> Tensor:
            logits = network.look(images)[1]
            assert logits is not None  # a classifier has a head
            return logits

        return look

    def rebuild(self, name: str, source: str, word: str, identities: int, images_per_identity: int) -> Reconstruction:
        """Reconstructions by one attack, without an evaluation model; goes on where it stopped.

        Args:
            name: Of the folder.
            source: Folder of the model.
            word: The attack, as ``calor-hf audit`` takes it.
            identities: Classes attacked, at most.
            images_per_identity: Reconstructions of each.
        """
        target = self.target(source)
        (plan,) = plan_attacks([word])
        return run_attack(
            plan.attack, target, self.prior(target), self.labels(target, identities), self.folder / "audits" / name,
            name=plan.kind, target_name=name, images_per_class=images_per_identity, seed=self.options.seed, resume=True,
        )  # fmt: skip

    def trace(self, source: str, word: str, identities: int, images_per_identity: int) -> tuple[str, Tensor, Trace]:
        """Attack a saved model once and follow every step.

        Args:
            source: Folder of the model.
            word: White-box attack, as :func:`~examples.paper.trace.traced`.
            identities: Classes attacked, at most.
            images_per_identity: Reconstructions of each.

        Returns:
            Name of the attack, (images,) the target's final scores, and the trace.
        """
        name, attack, trace = traced(word)
        target = self.target(source)
        labels = self.labels(target, identities)
        found = attack.run(
            target,
            self.prior(target),
            labels,
            images_per_class=images_per_identity,
            seed=self.options.seed,
            chunk_size=len(labels) * attack.rows(images_per_identity),
        )
        return name, found.scores, trace

    def audit(self, name: str, source: str, config: "AttackedConfig") -> dict[str, Any]:
        """Attack a saved model and evaluate each attack; resumes where it stopped.

        Args:
            name: Of the audit's folder.
            source: Folder of the model.
            config: Which attacks, and on whom.
        """
        target = self.target(source)
        report = audit(
            target,
            config.attacks.split(),
            self.prior(target),
            self.evaluation_model(),
            self.private(target, config.identities),
            output_dir=self.folder / "audits" / name,
            classes=self.labels(target, config.identities),
            images_per_class=config.images_per_identity,
            seed=self.options.seed,
            metrics=["attack_accuracy"],
            target_name=name,
            resume=True,
        )
        return leakage(report)


def trained_numbers(name: str, outcome: Outcome) -> dict[str, Any]:
    """What a study keeps of a training.

    Raises:
        TrainingFailedError: it has no numbers.
    """
    if outcome.error:
        raise TrainingFailedError(f"training {name}: {outcome.error}")
    result, numbers = outcome.result, outcome.numbers
    return {
        "test_accuracy": result["accuracy"],
        "validation_accuracy": result["validation_accuracy"],
        "train_confidence": result["train_confidence_correct"],
        "head": numbers["head"],
        "test_images": numbers["test_images"],
        "dataset": numbers["dataset"],
        "train_seconds": numbers["train_seconds"],
    }


def true_class_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,) float64 probability of each image's own class."""
    probabilities: Tensor = logits.double().softmax(dim=1)
    return probabilities.gather(1, labels[:, None].to(torch.int64)).squeeze(1)
