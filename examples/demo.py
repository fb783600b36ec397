"""Train three models on drawn people, attack each, and show what leaks: ``make demo``, four minutes on two cores.

Undefended, with CALoR, and with decoys (k = 4), on the same 20 people. Every step is an ordinary command, printed
before it runs, so that you can repeat it by hand: :data:`COMMANDS`. It ends with one table and one figure,
``outputs/demo/people.png``: photographs of some people, and what an attacker rebuilds of them.

The people are drawn by this library and do not exist. So it is known exactly which person a rebuilt image shows, and
the attacker has the best prior that there is: the program that drew them.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from calor_hf.auditing import load_reconstruction
from calor_hf.auditing.run import RESULT
from calor_hf.auditing.verdict import by_chance
from calor_hf.cli.main import main
from calor_hf.core.report import MATCH, LeakageReport, guesses
from calor_hf.data.decoys import is_dealt, read_assignment
from calor_hf.data.loading import load_splits
from calor_hf.metrics.identification_game import log_odds, submitted
from calor_hf.recipes.report import INCONCLUSIVE
from calor_hf.targets.hf_target import HFTarget

HOME = Path("outputs/demo")
PEOPLE, SHOWN = 20, 4  # shown in the figure
MODELS = ("undefended", "calor", "decoys")
# A deal with a seed is no secret. It need not be, as these people do not exist.
DEAL = f"decoys deal --num-identities {PEOPLE} --k 4 --seed 0 --output-dir {HOME}/people"
ALONE, MERGED = f"--num-identities {PEOPLE}", f"--dataset {HOME}/people"  # without and with decoys
ATTACK = (
    "--attacks mode_ranking@adaptive:steps=50,lr=0.05 --generator renderer --images-per-class 4 "
    f"--classes 0-{PEOPLE - 1} --skip-power --include-private-images"
)
COMMANDS = (
    f"train --defense none {ALONE} --num-train-epochs 12 --output-dir {HOME}/undefended",
    f"train --defense calor --rank 10 {ALONE} --num-train-epochs 25 --output-dir {HOME}/calor",
    f"train --defense decoys {MERGED} --num-train-epochs 12 --output-dir {HOME}/decoys",
    f"train --role evaluation {ALONE} --num-train-epochs 8 --output-dir {HOME}/evaluation-model",
    f"train --role evaluation {MERGED} --label-column identities --num-train-epochs 6 "
    f"--output-dir {HOME}/evaluation-model-of-all",
    f"audit {HOME}/undefended --evaluation-model {HOME}/evaluation-model {ATTACK} --output-dir {HOME}/audit-undefended",
    f"audit {HOME}/calor --evaluation-model {HOME}/evaluation-model {ATTACK} --output-dir {HOME}/audit-calor",
    f"audit {HOME}/decoys {MERGED} --evaluation-model {HOME}/evaluation-model-of-all {ATTACK} "
    f"--output-dir {HOME}/audit-decoys",
)
TABLE = f"report {HOME}/audit-undefended --others {HOME}/audit-calor {HOME}/audit-decoys --output-dir {HOME}"


def run(command: str, *more: str) -> None:
    """Print a command and run it; exit if it fails. An audit without power is no failure: the table says so."""
    print(f"\n$ calor-hf {command}", flush=True)
    status = main([*shlex.split(command), *more])
    if status not in (0, INCONCLUSIVE):
        sys.exit(status)


class Rebuilt:
    """Images rebuilt by the attack on a model, and the one of each class that the attacker would submit."""

    def __init__(self, name: str) -> None:
        report = LeakageReport.load(HOME / f"audit-{name}")
        self.attack = report.strongest or report.attacks[0]
        self.guess, self.chance = self.attack.get(guesses(MATCH)), by_chance(report, self.attack, guesses(MATCH))
        self.found = load_reconstruction(HOME / f"audit-{name}" / self.attack.name / RESULT)
        with torch.no_grad():
            self.scores = log_odds(HFTarget.from_pretrained(str(HOME / name))(self.found.images), self.found.labels)

    def show(self, panels: Any, label: int) -> None:
        """Show the images of a class: all, if there are panels enough, with the submitted one framed; or that alone."""
        rows = self.found.labels == label
        images, (first,) = self.found.images[rows], submitted(self.found.images[rows], self.scores[rows], 1)
        right = self.guess is not None and self.guess.by_identity[label] == 1
        for panel, index in zip(panels, range(len(images)) if len(panels) > 1 else [first], strict=True):
            panel.imshow(images[index].permute(1, 2, 0).numpy())
            if index == first:
                panel.spines[:].set(visible=True, linewidth=3, color="C2" if right else "C3")


def photograph(panel: Any, data: Any, column: str, number: int) -> None:
    """Show the first image of a person."""
    panel.imshow(data[data[column].index(number)]["image"])


def draw(file: Path) -> None:
    """Draw photographs of some people above what is rebuilt of them, and how often the attacker's guess is right."""
    alone, merged = load_splits(num_identities=PEOPLE), load_splits(str(HOME / "people"))
    secret, models = read_assignment(HOME / "people"), [Rebuilt(name) for name in MODELS]
    k, (undefended, calor, decoys) = secret.k, models
    figure = Figure(figsize=(12, 8), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(3, 1))
    left, right = parts
    panels = left.subplots(2 * SHOWN, 2 + k)
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    for label, above, below in zip(range(SHOWN), panels[::2], panels[1::2], strict=True):
        member = secret.private[label] % k
        person = alone.label_names.index(secret.names[label][member])
        for column, model in enumerate((undefended, calor)):
            photograph(above[column], alone.train, "label", person)
            model.show(below[[column]], person)
        for other in range(k):
            photograph(above[2 + other], merged.train, "identities", k * label + other)
        decoys.show(below[2:], label)
        above[2 + member].set_xlabel("private", fontsize=8, labelpad=1)
        above[0].set_ylabel("photographs", fontsize=8)
        below[0].set_ylabel("rebuilt", fontsize=8)
    for panel, title in zip(panels[0], ("undefended", "CALoR", f"decoys: the {k} people of a class"), strict=False):
        panel.set_title(title, fontsize=10, loc="left")
    left.supxlabel("framed: the image that an attacker would submit; green if it shows the right person", fontsize=9)
    bars = right.subplots()
    for place, (name, model) in enumerate(zip(MODELS, models, strict=True)):
        if model.guess is not None:
            value, low, high = (100 * one for one in (model.guess.value, model.guess.low, model.guess.high))
            bars.bar(name, value, color="C0", yerr=[[value - low], [high - value]], capsize=4)
            legend = "" if place else "by chance"
            bars.hlines(100 * model.chance, place - 0.4, place + 0.4, color="C3", label=legend)
    bars.set(ylim=(0, 100), title="people recognized\nin the single guess (%)")
    bars.legend()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    if is_dealt(HOME / "people"):
        print(f"{HOME}/people stays, as decoys of a person are fixed for life")
    else:
        run(DEAL)
    for command in COMMANDS:
        run(command, "--overwrite")
    run(TABLE)
    draw(HOME / "people.png")
    print(f"figure: {HOME}/people.png   all numbers of each model: {HOME}/audit-*/report.html")
