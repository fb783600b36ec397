"""The learning rate that falls at given epochs."""

from types import SimpleNamespace

import pytest
import torch

from calor_hf.core.outputs import Stage
from calor_hf.training.stages import plan_stages, schedule_of


def rates(stages: list[Stage], steps: int, drops: list[float], resume_at: int | None = None) -> list[float]:
    args = SimpleNamespace(lr_drop_epochs=drops, learning_rate=0.1)

    def fresh() -> tuple[torch.optim.SGD, torch.optim.lr_scheduler.LRScheduler]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        return optimizer, schedule_of(plan_stages(stages, steps_per_epoch=2), optimizer, args)

    optimizer, schedule = fresh()
    seen = []
    for step in range(steps):
        if step == resume_at:
            kept, of_schedule = optimizer.state_dict(), schedule.state_dict()
            optimizer, schedule = fresh()
            optimizer.load_state_dict(kept)
            schedule.load_state_dict(of_schedule)
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


FIT, ADAPT = Stage("fit", epochs=4), Stage("adapt", epochs=1, learning_rate=0.03)


@pytest.mark.parametrize("resume_at", [None, 5])
def test_the_rate_falls_to_a_tenth_at_each_epoch(resume_at: int | None) -> None:
    # Two steps per epoch, so epochs 2 and 3 begin with the steps 4 and 6.
    fit = [0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    assert rates([FIT], 8, [2, 3], resume_at) == pytest.approx(fit)
    assert rates([FIT, ADAPT], 10, [2, 3], resume_at) == pytest.approx([*fit, 0.03, 0.03])


def test_epochs_of_data_without_length_are_refused() -> None:
    plan = plan_stages([Stage("fit", epochs=1, steps=4)], steps_per_epoch=None)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match="data of unknown length"):
        schedule_of(plan, optimizer, SimpleNamespace(lr_drop_epochs=[1], learning_rate=0.1))
