"""Millions of identities: the low-rank head in chunks against ``nn.Linear`` and ``F.cross_entropy``.

Forward and backward pass of head and loss at batch 256, 768 features and rank 32, each contender in a process of its
own, in turns. The dense pair at a million classes needs 12 GB.
"""

from benchmarks._paired import in_turns, median_interval, run_module, show

RUN = "benchmarks._identities_run"
PAIRS = {10_000: 5, 100_000: 5, 1_000_000: 3}
# Multiply-adds: 3 · 768 a score for the dense pair, 4 · 32 in chunks, which computes the scores twice.
LIMIT = "18: multiplications alone"


def main() -> None:
    """Print all ratios."""
    for classes, pairs in PAIRS.items():
        goal = (">= 5", ">= 10") if classes == 1_000_000 else (">= 1", ">= 1")
        for who, loss in (("chunked", "CE"), ("adapt", "CA")):
            dense, ours = in_turns(
                lambda n=classes: run_module(RUN, "dense", str(n)),  # type: ignore[misc]
                lambda n=classes, who=who: run_module(RUN, who, str(n)),  # type: ignore[misc]
                pairs,
            )
            pair = list(zip(dense, ours, strict=True))
            speed = median_interval([a["seconds"] / b["seconds"] for a, b in pair])
            memory = median_interval([a["activation_bytes"] / b["activation_bytes"] for a, b in pair])
            apart = median_interval([b["apart"] for b in ours])
            name = f"{classes:,} classes, nn.Linear + cross_entropy / low rank in chunks + {loss}"
            show(f"seconds, {name}", speed, goal[0], LIMIT)
            show(f"activation memory, {name}", memory, goal[1], "codes alone, 256 x 32 numbers")
            show(f"relative distance of loss and gradients, {classes:,} classes, chunks / all at once, {loss}", apart,
                 "<= 1e-05", "1e-07: float32")  # fmt: skip


if __name__ == "__main__":
    main()
