"""Images with a high confidence, and their identity according to the evaluation model."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from calor_hf.attacks.specs import parse_attack
from calor_hf.core.config import MethodConfig
from calor_hf.core.seeding import named_rng
from calor_hf.defenses import DEFENSES
from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.recipes.runs import markdown
from calor_hf.robustness import Share
from calor_hf.targets.frozen import frozen
from examples.paper.leakage import bars, of_share, with_interval
from examples.paper.study import QUICK_ATTACK, STUDIES, Cell, Found, Study, percent_axis, records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SURE = 0.999
EXAMPLES = 6
POINTS = {"samples": "samples of the prior", "optimized": "optimized images"}
RULES = ("sure", "top")


@dataclass(frozen=True, kw_only=True)
class InversionSpaceConfig(MethodConfig):
    """Settings of :class:`InversionSpace`."""

    defenses: tuple[str, ...] = field(
        default=("none", "loft", "calor"), metadata={"help": "Names separated by commas."}
    )
    rank: int = field(default=16, metadata={"help": "Rank of low-rank heads."})
    samples: int = field(default=20000, metadata={"help": "Number of images drawn from the prior."})
    quantile: float = field(
        default=0.99,
        metadata={"help": "Second rule: a confidence above this quantile of the model's own confidences."},
    )
    attack: str = field(
        default="plg:steps=60,initial_candidates=500,lr=0.03",
        metadata={"help": "Attack that gives the optimized images."},
    )
    identities: int = field(default=32, metadata={"help": "Number of attacked classes, the first ones."})
    images_per_identity: int = field(default=4, metadata={"help": "Reconstructions per class."})
    training_seed: int = field(default=0, metadata={"help": "Seed of the trainings."})

    def validate(self) -> None:
        """Refuse unknown names, and values out of range."""
        parse_attack(self.attack)
        unknown = [name for name in self.defenses if name not in DEFENSES.names()]
        if unknown or not self.defenses:
            raise ValueError(f"expected defenses of {', '.join(DEFENSES.names())}, got {self.defenses}")
        if not 0 < self.quantile < 1 or min(self.samples, self.identities, self.images_per_identity, self.rank) < 1:
            raise ValueError(
                "expected quantile in (0, 1), and samples, identities, images_per_identity and rank >= 1, got "
                f"{self.quantile}, {self.samples}, {self.identities}, {self.images_per_identity} and {self.rank}"
            )


@STUDIES.register("inversion_space")
class InversionSpace(Study[InversionSpaceConfig]):
    """Images with a high confidence, and the share of them with the same identity in the evaluation model."""

    config_class = InversionSpaceConfig
    claim = "of images with a confidence > 0.999, those count that another classifier assigns to the same class"
    source = "inversion space examples"
    caveat = (
        "A sample of the prior counts for the class that the target predicts, an optimized image for the attacked "
        "class. A CALoR model is trained to a confidence of 0.88, so that hardly any image passes 0.999, whatever it "
        "shows: the second rule uses each model's own confidences. Intervals are exact, over images."
    )
    needs = ("evaluation_model", "prior")
    quick: ClassVar[dict[str, Any]] = {
        "defenses": ("none", "calor"), "rank": 2, "samples": 40, "quantile": 0.5, "identities": 2,
        "images_per_identity": 2, "attack": QUICK_ATTACK["attacks"],
    }  # fmt: skip
    size = (11.0, 6.6)

    def cells(self) -> list[Cell]:
        """One cell per defense."""
        return [Cell(name, {"defense": name}) for name in self.config.defenses]

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Train, draw and optimize images, and classify them with both models."""
        config, lab, name = self.config, self.lab, cell.values["defense"]
        folder, numbers = lab.train(name, config.training_seed, rank=config.rank)
        target = lab.target(folder)
        prior = lab.prior(target)
        latents = prior.sample_latents(config.samples, named_rng(lab.options.seed, "examples/inversion_space")).float()
        classify, evaluate = lab.classifier(folder), lab.classifier(lab.evaluation_model)
        classes = torch.arange(len(latents)) % target.num_classes  # labels for a conditional prior
        scores, correct = [], []
        with frozen(prior), torch.no_grad():
            for some, labels in zip(latents.split(1000), classes.split(1000), strict=True):
                images = prior(some.to(target.device), labels.to(target.device)).clamp(0, 1).cpu()
                best = classify(images).double().softmax(dim=1).max(dim=1)
                scores.append(best.values)
                correct.append(topk_correct(evaluate(images), best.indices) > 0)
        drawn = torch.cat(scores), torch.cat(correct)
        top = float(drawn[0].quantile(config.quantile))
        found = lab.reconstruct(name, folder, config.attack, config.identities, config.images_per_identity)
        optimized = found.scores.double(), topk_correct(evaluate(found.images), found.labels) > 0
        return {
            **numbers,
            "samples": shares(*drawn, top),
            "optimized": shares(*optimized, top),
            # Only for synthetic faces: the latents that they are drawn from.
            "examples": examples(latents, *drawn) if lab.embedded and prior.name == "renderer" else None,
        }

    @classmethod
    def draw(cls, found: Found, figure: "Figure") -> None:
        """Plot the shares, and the most confident samples of the prior if they are synthetic faces."""
        cells = records(found)
        names = [cell["values"]["defense"] for cell in cells]
        shown = [cell for cell in cells if cell["numbers"]["examples"] is not None]
        parts: Any = figure.subfigures(2, 1, height_ratios=(1.25, 1)) if shown else (figure, None)
        top, below = parts
        panels = top.subplots(1, 2, sharey=True)
        for panel, (kind, title) in zip(panels, POINTS.items(), strict=True):
            for number, rule in enumerate(RULES):
                shares_of = [cell["numbers"][kind][rule] for cell in cells]
                at = [x - 0.2 + 0.4 * number for x in range(len(cells))]
                values, spans = bars([of_share(share) for share in shares_of])
                label = f"confidence > {SURE}"
                if rule == "top":
                    label = f"surer than of {found['settings']['quantile']:.0%} of the samples"
                panel.bar(at, values, 0.38, yerr=spans, capsize=3, color=f"C{number}", label=label)
                for x, share in zip(at, shares_of, strict=True):
                    panel.text(x, -4, f"n={share['count']}", ha="center", va="top", fontsize=7)
            panel.set_title(title)
            panel.set_xticks(range(len(cells)), names)
            panel.tick_params(axis="x", pad=14)
            percent_axis(panel, 130)
            panel.legend(fontsize=8, loc="upper right", ncols=2)
        panels[0].set_ylabel("same identity by the evaluation model (%)")
        if below is None:
            return
        from calor_hf.data.face_renderer import IDENTITY_NAMES, render_faces
        from calor_hf.generators.renderer import Renderer, RendererConfig

        renderer = Renderer(RendererConfig())
        grid = below.subplots(len(shown), EXAMPLES, squeeze=False)
        for row, cell in zip(grid, shown, strict=True):
            for panel in row:
                panel.axis("off")
            for panel, example in zip(row, cell["numbers"]["examples"], strict=False):
                numbers = renderer.numbers(torch.tensor([example["latents"]]))
                identity, nuisance = numbers.split([len(IDENTITY_NAMES), numbers.shape[1] - len(IDENTITY_NAMES)], dim=1)
                panel.imshow(render_faces(identity, nuisance, 64)[0].permute(1, 2, 0).clamp(0, 1).numpy())
                label = "same" if example["correct"] else "other"
                panel.set_title(
                    f"{example['score']:.3f}, {label}", fontsize=7, color="C2" if example["correct"] else "C3"
                )
            row[0].text(-0.15, 0.5, cell["values"]["defense"], transform=row[0].transAxes, ha="right", va="center")
        below.suptitle(
            "most confident samples of the prior: target's confidence, identity by the evaluation model",
            fontsize=9,
        )

    @classmethod
    def table(cls, found: Found) -> str:
        """Return one row per defense, kind of image and rule."""
        rows = []
        for cell in records(found):
            for kind, title in POINTS.items():
                for rule in RULES:
                    share = cell["numbers"][kind][rule]
                    value = "-" if not share["count"] else with_interval(share["value"], share["low"], share["high"])
                    rows.append(
                        [cell["values"]["defense"], title, f"> {share['threshold']:.4g}",
                         f"{share['count']} of {share['of']}", value]
                    )  # fmt: skip
        head = ["defense", "images", "confidence", "count", "of these, the same identity by the evaluation model (%)"]
        return f"{markdown(head, rows)}\n\nThe paper shows images, without numbers."


def shares(scores: Tensor, correct: Tensor, top: float) -> dict[str, dict[str, Any]]:
    """Compute the share of correct images above each threshold.

    Args:
        scores: (n,) float64 confidence.
        correct: (n,) bool.
        top: Threshold of the second rule, specific to the model.

    Returns:
        By rule: ``threshold``, the ``count`` above it ``of`` all, and the share of correct ones among them.
    """
    return {
        rule: {"threshold": threshold, "of": len(scores), **Share.of(correct, scores > threshold).to_dict()}
        for rule, threshold in zip(RULES, (SURE, top), strict=True)
    }


def examples(latents: Tensor, scores: Tensor, correct: Tensor) -> list[dict[str, Any]]:
    """Return the most confident samples and their latents."""
    best = scores.topk(min(EXAMPLES, len(scores))).indices.tolist()
    return [
        {"latents": latents[row].tolist(), "score": float(scores[row]), "correct": bool(correct[row])} for row in best
    ]
