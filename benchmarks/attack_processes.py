"""An attack by two processes against one: GMI on the networks of ``benchmarks.attacks``, a thread a process."""

from benchmarks._paired import ONE, TWO, paired_ratio, run_module, show

PAIRS = 3


def main() -> None:
    """Print the ratio."""

    def seconds(launcher: tuple[str, ...]) -> float:
        return run_module("benchmarks._attack_run", launcher=launcher)["seconds"]

    ratio = paired_ratio(lambda: seconds(ONE), lambda: seconds(TWO), PAIRS)
    show("attack: 1 process / 2 processes, on 2 cores", ratio, ">= 1.7", "2: twice the cores")
