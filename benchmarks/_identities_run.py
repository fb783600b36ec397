"""Head and loss for very many classes, in a process of its own: ``python -m benchmarks._identities_run WHO CLASSES``.

``WHO`` is dense (``nn.Linear`` and ``F.cross_entropy``), low_rank (the low-rank head, all scores at once), or chunked
and adapt (the low-rank head in chunks, with cross-entropy and with confidence adaptation). Prints a JSON object:
``seconds`` of a forward and backward pass, ``activation_bytes`` that it needed besides weights and gradients, and how
far loss and gradients are from those of all scores at once (``apart``, relative; for the chunked ones).
"""

import json
import math
import sys
import time
from collections.abc import Callable

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calor_hf.core.outputs import Forward, Progress
from calor_hf.core.peak_memory import peak_memory_bytes
from calor_hf.defenses.calor import CALoR, CALoRDefenseConfig
from calor_hf.heads.chunked_scores import margins_in_chunks
from calor_hf.heads.low_rank_head import LowRankHead

BATCH, WIDTH, RANK, CHUNK, STEPS = 256, 768, 32, 2048, 2
STAGES = {"low_rank": "fit", "chunked": "fit", "adapt": "adapt"}


def loss_of(head: nn.Module, features: Tensor, labels: Tensor, stage: str, chunked: bool) -> Tensor:
    """Loss of a stage of CALoR."""
    if chunked:
        assert isinstance(head, LowRankHead)
        found = margins_in_chunks(head, features, labels, CHUNK)
        out = Forward(features.new_empty(BATCH, 0), labels, log_odds=found["log_odds"])
    else:
        out = Forward(head(features), labels)
    (loss,) = CALoR(CALoRDefenseConfig()).loss(out, Progress(stage)).values()
    return loss


def gradients(head: nn.Module, loss: Callable[[], Tensor]) -> list[Tensor]:
    """The loss and its gradients by the head's weights."""
    head.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    return [value.detach(), *(weight.grad.clone() for weight in head.parameters() if weight.grad is not None)]


def main() -> None:
    """Measure what the command line says."""
    who, classes = sys.argv[1], int(sys.argv[2])
    torch.manual_seed(0)
    head: nn.Module = nn.Linear(WIDTH, classes) if who == "dense" else LowRankHead(WIDTH, classes, RANK)
    features, labels = torch.randn(BATCH, WIDTH), torch.randint(classes, (BATCH,))
    if isinstance(head, LowRankHead):  # a trained head knows its people: confidence adaptation pulls at nothing else
        with torch.no_grad():
            code = head.code(features)
            head.up.weight[labels] += 1.1 * math.log(classes) * code / code.square().sum(dim=1, keepdim=True)
    stage, chunked = STAGES.get(who, ""), who in ("chunked", "adapt")

    def step() -> None:
        head.zero_grad(set_to_none=True)
        if who == "dense":
            F.cross_entropy(head(features), labels).backward()
        else:
            loss_of(head, features, labels, stage, chunked).backward()

    before = psutil.Process().memory_info().rss
    step()
    weights = sum(weight.numel() * weight.element_size() for weight in head.parameters())  # as many gradients
    result = {"activation_bytes": peak_memory_bytes() - before - weights}
    seconds = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    result["seconds"] = min(seconds)
    if chunked:
        found = gradients(head, lambda: loss_of(head, features, labels, stage, True))
        wanted = gradients(head, lambda: loss_of(head, features, labels, stage, False))
        result["apart"] = max(
            float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(found, wanted, strict=True)
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
