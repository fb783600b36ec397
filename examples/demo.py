# /// script
# requires-python = ">=3.10"
# dependencies = ["calor-hf"]
# ///
"""Train three models on drawn people, attack each, and show what leaks: ``make demo``, four minutes on two cores.

Undefended, with CALoR, and with decoys (k = 4), on the same 20 people. Every step is an ordinary command, printed
before it runs, so that you can repeat it by hand: :data:`COMMANDS`. It ends with one table and one figure,
``outputs/demo/people.png``: photographs of some people, and what an attacker rebuilds of them.

The people are drawn by this library and do not exist. So it is known exactly which person a rebuilt image shows, and
the attacker has the best prior that there is: the program that drew them.
"""

import itertools
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
PEOPLE, A_ROW = 20, 10  # people, and columns of the figure
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
    """The image of each class that an attacker of a model would submit, and how often it shows the right person."""

    def __init__(self, name: str) -> None:
        report = LeakageReport.load(HOME / f"audit-{name}")
        attack = report.strongest or report.attacks[0]
        self.guess, self.chance = attack.get(guesses(MATCH)), by_chance(report, attack, guesses(MATCH))
        self.found = load_reconstruction(HOME / f"audit-{name}" / attack.name / RESULT)
        with torch.no_grad():
            self.scores = log_odds(HFTarget.from_pretrained(str(HOME / name))(self.found.images), self.found.labels)

    def show(self, panel: Any, label: int) -> None:
        """Show the submitted image of a class, framed if it shows the right person."""
        rows = self.found.labels == label
        images = self.found.images[rows]
        (first,) = submitted(images, self.scores[rows], 1)
        panel.imshow(images[first].permute(1, 2, 0).numpy())
        if self.guess is not None and self.guess.by_identity[label] == 1:
            panel.spines[:].set(visible=True, linewidth=4, color="C2")

    def tell(self, panel: Any) -> None:
        """Write the share of people that are recognized, with its interval and the chance level."""
        if self.guess is not None:
            panel.text(0, 0.65, f"{100 * self.guess.value:.0f} %", fontsize=26, va="center")
            interval = f"{100 * self.guess.low:.0f}–{100 * self.guess.high:.0f} %"
            panel.text(
                0, 0.15, f"95 % interval {interval}\nby chance {100 * self.chance:.0f} %", fontsize=10, va="center"
            )


def draw(file: Path) -> None:
    """Draw a photograph of each person above what an attacker would submit as theirs, with the shares of people."""
    photographs, secret = load_splits(num_identities=PEOPLE), read_assignment(HOME / "people")
    models, people = [Rebuilt(name) for name in MODELS], len(secret.private)
    names = ("photographs", "undefended", "CALoR", "decoys")
    figure = Figure(figsize=(12.6, 4.8 * -(-people // A_ROW)), layout="constrained")
    panels: Any = figure.subplots(len(names) * -(-people // A_ROW), A_ROW + 1, width_ratios=[1] * A_ROW + [1.9])
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    for label in range(people):
        person = photographs.label_names.index(secret.names[label][secret.private[label] % secret.k])
        begin, place = label // A_ROW * len(names), label % A_ROW
        above, *below = panels[begin : begin + len(names), place]
        above.imshow(photographs.train[photographs.train["label"].index(person)]["image"])
        for panel, model, number in zip(below, models, (person, person, label), strict=True):
            model.show(panel, number)
    for panel, name in zip(panels[:, 0], itertools.cycle(names), strict=False):
        panel.set_ylabel(name, fontsize=11)
    first, *others = panels[: len(names), -1]
    first.text(0, 0.5, "people recognized in\nthe attacker's\nsingle guess", fontsize=12, va="center")
    for panel, model in zip(others, models, strict=True):
        model.tell(panel)
    about = (
        f"drawn people, who do not exist; decoys: k = {secret.k}; framed: the rebuilt image shows the person above it"
    )
    figure.supxlabel(about, fontsize=12)
    figure.savefig(file, dpi=90)


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
