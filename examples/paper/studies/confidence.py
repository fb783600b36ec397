"""Attack accuracy against the confidence on training images."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from calor_hf.defenses import DEFENSES
from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.recipes.runs import markdown
from calor_hf.training.checkpoints import complete_checkpoints
from examples.paper.lab import true_class_confidence
from examples.paper.leakage import attack_labels, attack_names, bars, of_attack, with_interval
from examples.paper.study import QUICK_ATTACK, STUDIES, AttackedConfig, Cell, Found, Study, records

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class ConfidenceConfig(AttackedConfig):
    """Settings of :class:`Confidence`."""

    attacks: str = field(
        default="plg:steps=60,initial_candidates=500,lr=0.03 "
        "ppa:steps=60,initial_candidates=500,restarts=2,final_views=10",
        metadata={"help": "Attacks as calor-hf audit takes them, several with spaces between."},
    )
    epochs: tuple[int, ...] = field(
        default=(3, 6, 9, 12, 16, 22, 35),
        metadata={"help": "Epochs of the training after which the model is attacked."},
    )
    defense: str = field(default="none", metadata={"help": "Defense of the training."})

    def validate(self) -> None:
        """Refuse epochs below 1 and unknown defenses."""
        super().validate()
        if not self.epochs or min(self.epochs) < 1:
            raise ValueError(f"epochs must be whole numbers >= 1, got {self.epochs}")
        if self.defense not in DEFENSES.names():
            raise ValueError(f"defense must be one of {', '.join(DEFENSES.names())}, got {self.defense}")


@STUDIES.register("confidence")
class Confidence(Study[ConfidenceConfig]):
    """Checkpoints of one training: confidence on training images, and attack accuracy."""

    config_class = ConfidenceConfig
    claim = "the higher a model's confidence on its training images, the higher the attack accuracy"
    source = "study of confidence, with PPA and PLG"
    caveat = (
        "Test accuracy grows during a training too, so early checkpoints leak less also because they have learned "
        "less: compare points at about the same test accuracy."
    )
    needs = ("evaluation_model", "prior")
    quick: ClassVar[dict[str, Any]] = {**QUICK_ATTACK, "epochs": (1, 2)}
    size = (11.0, 4.4)

    def cells(self) -> list[Cell]:
        """One cell per epoch and training."""
        if max(self.config.epochs) > self.lab.epochs:
            raise ValueError(
                f"the training has {self.lab.epochs:g} epochs, the study needs {max(self.config.epochs)}; pass "
                "other epochs in --settings, or --num-train-epochs"
            )
        return [
            Cell(f"epoch-{epoch}-seed{seed}", {"epoch": epoch, "seed": seed})
            for seed in self.config.seeds
            for epoch in sorted(set(self.config.epochs))
        ]

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Train once, and audit the checkpoint."""
        config, lab, seed = self.config, self.lab, cell.values["seed"]
        options = ["--save-strategy", "epoch", "--save-total-limit", "10000"]
        folder, numbers = lab.train(config.defense, seed, suffix="-kept", options=options, keep_checkpoints=True)
        checkpoint = str(checkpoint_after(Path(folder), cell.values["epoch"]))
        private, classify = lab.private_images(lab.target(checkpoint)), lab.classifier(checkpoint)
        train = classify(private.images)
        assert private.held_images is not None  # there is a test split
        assert private.held_labels is not None
        test = classify(private.held_images)
        return {
            "train_confidence": float(true_class_confidence(train, private.labels).mean()),
            "train_accuracy": float(topk_correct(train, private.labels).mean()),
            "test_accuracy": float(topk_correct(test, private.held_labels).mean()),
            "train_seconds": numbers["train_seconds"],
            "leakage": lab.audit(cell.name, checkpoint, config),
        }

    @classmethod
    def draw(cls, found: Found, figure: "Figure") -> None:
        """Plot leakage against confidence, and both against epochs."""
        against, along = figure.subplots(1, 2, sharey=True)
        cells, called = records(found), attack_labels(found)
        for number, attack in enumerate(attack_names(cells)):
            color = f"C{number}"
            values, spans = bars([of_attack([cell], attack) for cell in cells])
            reached = [cell["numbers"]["train_confidence"] for cell in cells]
            against.errorbar(reached, values, yerr=spans, fmt="o", capsize=3, color=color,
                             label=f"attack accuracy, {called[attack]}")  # fmt: skip
            for seed in dict.fromkeys(cell["values"]["seed"] for cell in cells):
                row = records(found, seed=seed)
                along.plot([cell["values"]["epoch"] for cell in row],
                           [100 * of_attack([cell], attack)[0] for cell in row], "o-", color=color)  # fmt: skip
        for seed in dict.fromkeys(cell["values"]["seed"] for cell in cells):
            row = records(found, seed=seed)
            epochs = [cell["values"]["epoch"] for cell in row]
            for key, style, label in (("test_accuracy", "ks-", "test accuracy"),
                                      ("train_confidence", "k^:", "training confidence")):  # fmt: skip
                along.plot(epochs, [100 * cell["numbers"][key] for cell in row], style, label=label)
        against.set_xlabel("mean true-class score of training images")
        against.set_ylabel("percent")
        against.set_title("with 95 % intervals over identities and trainings")
        along.set_xlabel("epochs trained")
        along.set_title("the same checkpoints along the training")
        for panel in (against, along):
            panel.set_ylim(-3, 103)
            panel.grid(alpha=0.3)
        handles = against.get_legend_handles_labels(), along.get_legend_handles_labels()
        named = dict(zip(handles[0][1] + handles[1][1], handles[0][0] + handles[1][0], strict=True))
        figure.legend(named.values(), named, loc="outside lower center", ncols=2, fontsize=9)

    @classmethod
    def table(cls, found: Found) -> str:
        """Return one row per checkpoint."""
        cells = records(found)
        attacks = attack_names(cells)
        rows = [
            [
                str(cell["values"]["epoch"]),
                str(cell["values"]["seed"]),
                f"{cell['numbers']['train_confidence']:.3f}",
                f"{100 * cell['numbers']['test_accuracy']:.1f}",
                *(with_interval(*of_attack([cell], attack)) for attack in attacks),
            ]
            for cell in cells
        ]
        head = ["epoch", "seed", "training confidence", "test accuracy (%)",
                *(f"attack accuracy (%), {a}" for a in attacks)]  # fmt: skip
        return f"{markdown(head, rows)}\n\nThe paper prints a figure without numbers: the curve rises."


def checkpoint_after(folder: Path, epoch: int) -> Path:
    """Return the checkpoint nearest to the end of an epoch.

    Raises:
        ValueError: no checkpoint lies within half an epoch.
    """
    ages = {
        float(json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["epoch"]): path
        for path in complete_checkpoints(folder)
    }
    nearest = min(ages, key=lambda age: abs(age - epoch), default=None)
    if nearest is None or abs(nearest - epoch) > 0.5:
        raise ValueError(
            f"no checkpoint of {folder} after epoch {epoch}; it has {', '.join(f'{age:g}' for age in sorted(ages))}"
        )
    return ages[nearest]
