"""Adversarial examples and backdoors, undefended and with CALoR."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from calor_hf.core.config import MethodConfig
from calor_hf.defenses import DEFENSES
from calor_hf.recipes.backdoor import recorded_backdoor
from calor_hf.recipes.robustness import as_read, attacked_images, table_cell
from calor_hf.recipes.runs import markdown
from calor_hf.robustness import ADVERSARIAL, TRIGGERS, Share, adversarial
from calor_hf.robustness.adversarial import check_attacks
from calor_hf.robustness.backdoor import backdoor_rates, trigger_named
from calor_hf.robustness.gradient import library
from examples.paper.leakage import bars, of_share
from examples.paper.study import STUDIES, Cell, Found, Study, percent_axis, records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# (Attack, targeted): success in percent of (undefended, CALoR), both pre-trained on MS-Celeb-1M.
TABLE_16 = {
    ("fgsm", False): (98.3, 85.9), ("pgd", False): (100.0, 100.0), ("bim", False): (100.0, 100.0),
    ("one_pixel", False): (1.2, 2.4), ("fgsm", True): (72.4, 2.0), ("pgd", True): (100.0, 89.0),
    ("bim", True): (100.0, 91.0), ("one_pixel", True): (0.0, 0.0),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig(MethodConfig):
    """Settings of :class:`Robustness`."""

    defenses: tuple[str, ...] = field(default=("none", "calor"), metadata={"help": "Names separated by commas."})
    rank: int = field(default=16, metadata={"help": "Rank of low-rank heads."})
    attacks: tuple[str, ...] = field(default=tuple(ADVERSARIAL), metadata={"help": f"Some of {','.join(ADVERSARIAL)}."})
    backdoors: tuple[str, ...] = field(default=tuple(TRIGGERS), metadata={"help": f"Some of {','.join(TRIGGERS)}."})
    poison_share: float = field(default=0.01, metadata={"help": "Share of training images with the backdoor, (0, 1]."})
    images: int = field(default=200, metadata={"help": "Maximum number of test images, evenly spread."})
    training_seed: int = field(default=0, metadata={"help": "Seed of the trainings."})

    def validate(self) -> None:
        """Refuse unknown names, and values out of range."""
        check_attacks(self.attacks)
        for name in self.backdoors:
            trigger_named(name)
        unknown = [name for name in self.defenses if name not in DEFENSES.names()]
        if unknown or not self.defenses or self.rank < 1 or self.images < 1 or not 0 < self.poison_share <= 1:
            raise ValueError(
                f"expected defenses of {', '.join(DEFENSES.names())}, rank >= 1, images >= 1 and poison_share in "
                f"(0, 1], got {self.defenses}, {self.rank}, {self.images} and {self.poison_share}"
            )


@STUDIES.register("robustness")
class Robustness(Study[RobustnessConfig]):
    """Adversarial examples and backdoors, undefended and with CALoR (Tables 16 and 17)."""

    config_class = RobustnessConfig
    claim = "targeted adversarial examples succeed less often against CALoR"
    source = "Tables 16 and 17"
    caveat = (
        "A low rate does not prove robustness: Tanh and low rank mask gradients. pgd_margin follows the logit margin, "
        "which Tanh and softmax do not flatten; if it beats pgd, the gradient of cross-entropy was masked."
    )
    quick: ClassVar[dict[str, Any]] = {
        "attacks": ("fgsm",), "backdoors": ("badnets",), "poison_share": 0.1, "images": 6, "rank": 2,
    }  # fmt: skip
    size = (12.0, 4.6)

    def cells(self) -> list[Cell]:
        """One cell per defense without a backdoor, and one with each."""
        if self.config.attacks:
            library()  # if it is missing, the error comes before any training
        return [
            Cell(f"{name}-{backdoor or 'clean'}", {"defense": name, "backdoor": backdoor})
            for name in self.config.defenses
            for backdoor in (None, *self.config.backdoors)
        ]

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Train; attack the clean model, or trigger the backdoor of a poisoned one."""
        config, lab, name, backdoor = self.config, self.lab, cell.values["defense"], cell.values["backdoor"]
        options, suffix = list[str](), ""
        if backdoor is not None:
            options = ["--backdoor", backdoor, "--poison-share", str(config.poison_share)]
            suffix = f"-{backdoor}-{config.poison_share:g}"
        folder, numbers = lab.train(name, config.training_seed, rank=config.rank, suffix=suffix, options=options)
        target = as_read(lab.target(folder))
        splits = lab.splits(target.image_size[0]).for_classes(target.class_names)
        images, labels = attacked_images(splits, target, config.images)
        if backdoor is None:
            results = [
                result.to_dict()
                for targeted in (False, True)
                for result in adversarial(target, images, labels, config.attacks, targeted, lab.options.seed)
            ]
            return {**numbers, "adversarial": results}
        recorded = recorded_backdoor(folder)
        assert recorded is not None  # the training wrote it
        rates = backdoor_rates(target, images, labels, trigger_named(backdoor, recorded["seed"]))
        return {**numbers, "backdoor": rates.to_dict()}

    @classmethod
    def draw(cls, found: Found, figure: "Figure") -> None:
        """Plot the success of adversarial examples, untargeted and targeted, and of backdoors."""
        panels = figure.subplots(1, 3, sharey=True)
        names = found["settings"]["defenses"]
        width = 0.8 / len(names)
        for number, name in enumerate(names):
            clean = records(found, defense=name, backdoor=None)
            for panel, targeted in zip(panels, (False, True), strict=False):
                rows = [r for c in clean for r in c["numbers"]["adversarial"] if r["targeted"] == targeted]
                _bars(panel, [(r["attack"].replace("_", "\n"), r["changed"]) for r in rows], number, width, name)
            poisoned = [c for c in records(found, defense=name) if c["values"]["backdoor"] is not None]
            bars = [(c["values"]["backdoor"], c["numbers"]["backdoor"]["success_of_others"]) for c in poisoned]
            _bars(panels[2], bars, number, width, name)
        titles = ("adversarial, away from the label", "adversarial, to the next class", "backdoor")
        for panel, title in zip(panels, titles, strict=True):
            panel.set_title(title)
            percent_axis(panel)
            if panel.get_legend_handles_labels()[0]:
                panel.legend(fontsize=8, ncols=len(names), loc="upper right")
        panels[0].set_ylabel("success of the attack (%), 95 % interval")

    @classmethod
    def table(cls, found: Found) -> str:
        """Return every rate with its interval, next to the paper's."""
        names = found["settings"]["defenses"]
        rows = []
        column = {"none": 0, "calor": 1}
        for name in names:
            for cell in records(found, defense=name, backdoor=None):
                for result in cell["numbers"]["adversarial"]:
                    paper = TABLE_16.get((result["attack"], result["targeted"]))
                    aim = "next class" if result["targeted"] else "any other"
                    known = f"{paper[column[name]]}" if paper is not None and name in column else "-"
                    rows.append([name, result["attack"], aim, _cell(result["changed"]), _cell(result["all"]), known])
            for cell in records(found, defense=name):
                if cell["values"]["backdoor"] is not None:
                    rates = cell["numbers"]["backdoor"]
                    title = f"backdoor {cell['values']['backdoor']}"
                    rows.append(
                        [name, title, "class 0", _cell(rates["success_of_others"]), _cell(rates["success"]), "-"]
                    )
        head = ["defense", "attack", "aim", "success on images not classified so before", "of all images",
                "paper (%)"]  # fmt: skip
        note = "Paper: Table 16, high resolution, pre-trained on MS-Celeb-1M; Table 17 is an image in our copy."
        return f"{markdown(head, rows)}\n\n{note}"


def _bars(panel: Any, shares: list[tuple[str, dict[str, Any]]], number: int, width: float, label: str) -> None:
    if not shares:
        return
    values, spans = bars([of_share(share) for _, share in shares])
    at = [x - 0.4 + (number + 0.5) * width for x in range(len(shares))]
    panel.bar(at, values, width, yerr=spans, capsize=3, color=f"C{number}", label=label)
    panel.set_xticks(range(len(shares)), [name for name, _ in shares], fontsize=8)


def _cell(share: dict[str, Any]) -> str:
    return table_cell(Share(share["successes"], share["count"])).strip()
