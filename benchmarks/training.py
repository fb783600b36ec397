"""Training throughput and peak memory against the plain Trainer: ViT-S geometry at 112 pixels, same base and data.

Both stages count: half of the timed steps use cross-entropy, half confidence adaptation.
"""

from benchmarks._paired import in_turns, median_interval, run_module, show

PAIRS = 9
RUN = "benchmarks._training_run"


def main() -> None:
    """Print the ratios of throughput and of peak memory."""
    calor, plain = in_turns(lambda: run_module(RUN, "calor", "{}"), lambda: run_module(RUN, "plain", "{}"), PAIRS)
    speed = [ours["images_per_second"] / theirs["images_per_second"] for ours, theirs in zip(calor, plain, strict=True)]
    memory = [ours["peak_bytes"] / theirs["peak_bytes"] for ours, theirs in zip(calor, plain, strict=True)]
    show("training images/s, CALoRTrainer / Trainer", median_interval(speed), ">= 0.98", "1: the base model's own work")
    show("peak memory of the process, CALoRTrainer / Trainer", median_interval(memory), "<= 1.02", "1: the base model")
