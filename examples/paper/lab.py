"""Shared parts of the studies: models that are trained once, an evaluation model, a prior, images, and audits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from calor_hf.auditing import AuditOptions, PrivateImages
from calor_hf.auditing.audit import evaluate, reconstruct
from calor_hf.auditing.evaluation import Evaluator
from calor_hf.auditing.networks import load_network
from calor_hf.core.processes import process_state
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.core.report import SYNTHETIC
from calor_hf.data.loading import Splits, load_splits
from calor_hf.defenses import DEFENSES
from calor_hf.defenses.low_rank import LowRankDefense
from calor_hf.generators import Generator, load_generator
from calor_hf.recipes.runs import Runs
from calor_hf.recipes.train_arguments import parse
from calor_hf.targets.hf_target import HFTarget
from examples.paper.leakage import leakage
from examples.paper.trace import Trace, traced

if TYPE_CHECKING:
    from examples.paper.study import AttackedConfig

TRAIN = ("-m", "examples.paper", "calor-hf", "train")  # trainings that can load the paper's face networks
QUICK = ("--num-train-epochs", "2", "--adapt-epochs", "1", "--max-accuracy-drop", "100", "--warmup-steps", "0")
# For models that start from one trained on public faces; found for docs/results/comparison.md.
FINE_TUNING = (
    "--num-train-epochs", "20", "--learning-rate", "1e-3", "--head-learning-rate", "6e-3", "--lr-scheduler-type",
    "cosine", "--weight-decay", "0.01", "--per-device-train-batch-size", "32", "--per-device-eval-batch-size", "256",
    "--adapt-learning-rate", "5e-4", "--max-accuracy-drop", "1.0",
)  # fmt: skip
PUBLIC_IDENTITIES = 128


class TrainingFailedError(RuntimeError):
    """A training failed, for instance because it lost too much accuracy."""


@dataclass(frozen=True)
class LabOptions:
    """Sources of models, images and prior.

    Attributes:
        dataset: Private images, as for ``calor-hf train``. None means the synthetic faces.
        prior: Folder or Hub id of a trained prior, or ``renderer``, the oracle of the synthetic faces.
        evaluation_model: Folder or Hub id. None trains one, for the synthetic faces only.
        models: Folder of the trained models, which studies may share. None means inside the study's own.
        train_options: Options of ``calor-hf train`` for every model.
        launcher: Command in front of a training, such as ``accelerate launch``.
        seed: Seed of the attacks and of every draw outside training.
        quick: Train as little as possible, for a trial.
    """

    dataset: str | None = None
    prior: str = "renderer"
    evaluation_model: str | None = None
    models: Path | None = None
    train_options: tuple[str, ...] = ()
    launcher: str = ""
    seed: int = 0
    quick: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the options that the results depend on."""
        return {
            "dataset": self.dataset,
            "prior": self.prior,
            "evaluation_model": self.evaluation_model,
            "train_options": list(self.train_options),
            "seed": self.seed,
            "quick": self.quick,
        }


class Lab:
    """Models, evaluation model, prior and images of one study; each is made on first use.

    Args:
        folder: Folder of the study. Models lie in ``folder / "models"`` unless the options name another folder, audits
            in ``folder / "audits"``.
        options: Sources of models, images and prior.
        needs: Parts that the study needs, see :class:`~examples.paper.study.Study`.

    Raises:
        ValueError: options that ``calor-hf train`` refuses, or no prior or evaluation model for the user's data.
    """

    def __init__(self, folder: Path, options: LabOptions, needs: Sequence[str] = ()) -> None:
        self.folder, self.options = folder, options
        self.models = options.models or folder / "models"
        data = () if options.dataset is None else ("--dataset", options.dataset)
        few = ("--num-identities", "4") if options.quick and self.embedded else ()
        self._train_options = [*few, *(QUICK if options.quick else ()), *data, *options.train_options]
        model, data_options, _, training = parse(self._train_options)
        self.has_base = model.model is not None
        self.epochs = float(training.num_train_epochs)
        self._identities = int(data_options.num_identities)
        if not self.embedded:
            if options.prior == "renderer" and "prior" in needs:
                raise ValueError(
                    "--prior renderer draws the synthetic faces; for --dataset pass a prior trained on public images "
                    "of the same kind (calor-hf prior)"
                )
            if options.evaluation_model is None and "evaluation_model" in needs:
                raise ValueError(
                    "no evaluation model: train one with calor-hf train --role evaluation --model ANOTHER_ARCHITECTURE "
                    f"--dataset {options.dataset}, and pass it as --evaluation-model"
                )

    # Models

    @property
    def embedded(self) -> bool:
        """Whether the private images are the synthetic faces."""
        return self.options.dataset is None

    def train(
        self, defense: str, seed: int, *, rank: int | None = None, activation: str = "tanh",
        suffix: str = "", options: Sequence[str] = (), keep_checkpoints: bool = False,
    ) -> tuple[str, dict[str, Any]]:  # fmt: skip
        """Train a model, unless it exists; return its folder and measurements.

        Args:
            defense: Registered name.
            seed: Seed of the training.
            rank: Rank of a low-rank head; ignored for a defense without one.
            activation: Activation inside that head.
            suffix: Suffix of the name, for the effect of ``options``.
            options: More options of ``calor-hf train``.
            keep_checkpoints: Keep the checkpoints.

        Raises:
            TrainingFailedError: the training failed.
        """
        own, name = ["--defense", defense, "--seed", str(seed)], defense
        method = DEFENSES.get(defense)
        if rank is not None and issubclass(method, LowRankDefense) and method(method.config_class()).own_head:
            name += f"-{activation}-{rank}"
            own += ["--rank", str(rank), "--activation", activation]
        return _train(self._runs, f"{name}{suffix}-seed{seed}", [*own, *options], keep_checkpoints)

    @cached_property
    def _runs(self) -> Runs:
        return _runs(self.models, self._train_options, self.options.launcher)

    def public_base(self) -> str:
        """Return the folder of a base model trained on public synthetic faces.

        Raises:
            ValueError: the private images are not the synthetic faces.
            TrainingFailedError: the training failed.
        """
        if not self.embedded:
            raise ValueError("pre-training on public faces exists for the synthetic faces only; pass --model instead")
        quick = self.options.quick
        identities = "4" if quick else str(PUBLIC_IDENTITIES)
        common = ["--public-faces", "--num-identities", identities, "--report-to", "none", *(QUICK if quick else ())]
        return _train(_runs(self.models / "public", common), "base", ["--defense", "none"])[0]

    @cached_property
    def evaluation_model(self) -> str:
        """Folder or Hub id of the evaluation model, which is trained once if none was given."""
        if self.options.evaluation_model is not None:
            return self.options.evaluation_model
        quick = ["--num-train-epochs", "1"] if self.options.quick else []
        common = ["--num-identities", str(self._identities), "--report-to", "none", *quick]
        runs = _runs(self.models / "evaluation_model", common)
        return _train(runs, "evaluation_model", ["--role", "evaluation"])[0]

    # Images

    def splits(self, image_size: int) -> Splits:
        """Return the private images; synthetic faces are drawn at ``image_size``."""
        if image_size not in self._splits:
            self._splits[image_size] = load_splits(
                self.options.dataset, num_identities=self._identities, image_size=image_size
            )
        return self._splits[image_size]

    @cached_property
    def _splits(self) -> dict[int, Splits]:
        return {}

    def private_images(self, target: HFTarget, identities: int | None = None) -> PrivateImages:
        """Return training images of the first ``identities`` classes (None for all), and test images of all."""
        labels = first_labels(target, identities)
        side, name = target.image_size[0], self.options.dataset or SYNTHETIC
        splits = self.splits(side).for_classes(target.class_names)
        return PrivateImages.from_dataset(splits, image_size=side, classes=labels, name=name)

    # Attacks and evaluation

    def target(self, source: str) -> HFTarget:
        """Load a saved model as a target on this machine's device."""
        target = HFTarget.from_pretrained(source)
        target.module.to(process_state().device)
        return target

    def prior(self, target: HFTarget) -> Generator[Any]:
        """Load the generator at the target's image size."""
        return load_generator(self.options.prior, image_size=target.image_size[0]).to(process_state().device).eval()

    def classifier(self, source: str) -> Callable[[Tensor], Tensor]:
        """Load a classifier as a function from images (n, 3, height, width) in [0, 1] or uint8 to logits."""
        network = load_network(self.target(source), source)

        def classify(images: Tensor) -> Tensor:
            logits = network.outputs(images)[1]
            assert logits is not None  # a classifier has a head
            return logits

        return classify

    def reconstruct(
        self, name: str, source: str, spec: str, identities: int, images_per_identity: int
    ) -> Reconstruction:
        """Run one attack without evaluation, or resume it.

        Args:
            name: Name of the audit's folder.
            source: Folder of the model.
            spec: The attack, as for ``calor-hf audit``.
            identities: Maximum number of attacked classes.
            images_per_identity: Reconstructions per class.
        """
        target = self.target(source)
        options = self._audit_options(name, [spec], first_labels(target, identities), images_per_identity)
        ((_, found),) = reconstruct(target, self.prior(target), first_labels(target, identities), options)
        return found

    def trace(self, source: str, spec: str, identities: int, images_per_identity: int) -> tuple[str, Tensor, Trace]:
        """Run one white-box attack and record every step.

        Args:
            source: Folder of the model.
            spec: The attack, as for :func:`~examples.paper.trace.traced`.
            identities: Maximum number of attacked classes.
            images_per_identity: Reconstructions per class.

        Returns:
            Name of the attack, (images,) final scores of the target, and the trace.
        """
        name, attack, trace = traced(spec)
        target = self.target(source)
        labels = first_labels(target, identities)
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
        """Audit a saved model, or resume the audit; return its :func:`~examples.paper.leakage.leakage` by attack.

        Some models are trained too little on purpose, so it is not asked whether they learned the images.

        Args:
            name: Name of the audit's folder.
            source: Folder of the model.
            config: Attacks and number of attacked classes.
        """
        target = self.target(source)
        labels = first_labels(target, config.identities)
        options = self._audit_options(name, config.attacks.split(), labels, config.images_per_identity)
        private, prior = self.private_images(target, config.identities), self.prior(target)
        evaluator = Evaluator(target, private, prior, labels, self.evaluation_model, options)
        return leakage(evaluate(evaluator, reconstruct(target, prior, labels, options), options))

    def _audit_options(self, name: str, attacks: list[str], labels: list[int], images: int) -> AuditOptions:
        return AuditOptions(
            attacks=attacks,
            classes=labels,
            images_per_class=images,
            seed=self.options.seed,
            metrics=["attack_accuracy"],
            skip_power=True,
            target_name=name,
            output_dir=str(self.folder / "audits" / name),
            resume=True,
        )


def first_labels(target: HFTarget, identities: int | None) -> list[int]:
    """Labels of the first classes of a target. None means all."""
    count = target.num_classes
    return list(range(count if identities is None else min(identities, count)))


def true_class_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,) float64 probability of each image's true class."""
    probabilities: Tensor = logits.double().softmax(dim=1)
    return probabilities.gather(1, labels[:, None].to(torch.int64)).squeeze(1)


def _runs(folder: Path, options: Sequence[str], launcher: str = "") -> Runs:
    return Runs(folder, options, launcher, resume=True, program=TRAIN)


def _train(runs: Runs, name: str, options: Sequence[str], keep_checkpoints: bool = False) -> tuple[str, dict[str, Any]]:
    outcome = runs(name, options, keep_checkpoints)
    if outcome.error:
        raise TrainingFailedError(f"training {name}: {outcome.error}")
    result, numbers = outcome.result, outcome.numbers
    return str(runs.folder / "runs" / name), {
        "test_accuracy": result["accuracy"],
        "validation_accuracy": result["validation_accuracy"],
        "train_confidence": result["train_confidence_correct"],
        "head": numbers["head"],
        "test_images": numbers["images"],
        "dataset": numbers["dataset"],
        "train_seconds": numbers["train_seconds"],
    }
