"""Millions of identities: the low-rank head in chunks against ``nn.Linear`` and ``F.cross_entropy``.

Forward and backward pass of head and loss at batch 256, 768 features and rank 32, each contender in a process of its
own, in turns. The dense pair at a million classes needs 12 GB.
"""

from benchmarks._paired import median_interval, run_module, show

RUN = "benchmarks._identities_run"
PAIRS = {10_000: 5, 100_000: 5, 1_000_000: 3}
LOSSES = {"chunked": "CE", "adapt": "CA"}
# Multiply-adds: 3 · 768 a score for the dense pair, 4 · 32 in chunks, which computes the scores twice.
LIMIT = "18: multiplications alone"


def main() -> None:
    """Print all ratios."""
    for classes, pairs in PAIRS.items():
        goal = (">= 5", ">= 10") if classes == 1_000_000 else (">= 1", ">= 1")
        runs = [{who: run_module(RUN, who, str(classes)) for who in ("dense", *LOSSES)} for _ in range(pairs)]
        for who, loss in LOSSES.items():
            speed = median_interval([run["dense"]["seconds"] / run[who]["seconds"] for run in runs])
            memory = median_interval([run["dense"]["activation_bytes"] / run[who]["activation_bytes"] for run in runs])
            apart = median_interval([run[who]["apart"] for run in runs])
            name = f"{classes:,} classes, nn.Linear + cross_entropy / low rank in chunks + {loss}"
            show(f"seconds, {name}", speed, goal[0], LIMIT)
            show(f"activation memory, {name}", memory, goal[1], "codes alone, 256 x 32 numbers")
            show(f"relative distance of loss and gradients, {classes:,} classes, chunks / all at once, {loss}", apart,
                 "<= 1e-05", "1e-07: float32")  # fmt: skip


if __name__ == "__main__":
    main()
