"""RLB-MI: the reward by hand, the agents against networks of torch's own, and a hill that they find."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calor_hf.attacks import ATTACKS
from calor_hf.attacks._sac import HIDDEN, Agents, SACPlan
from calor_hf.attacks.rlb import reward
from calor_hf.core.seeding import named_rng
from tests.attacks.plane import hill, run

LIKE = torch.empty(0, dtype=torch.float64)
DIM = 2


def rlb(**settings: Any) -> Any:
    kind = ATTACKS.get("rlb")
    return kind(kind.configure(**settings))


def agents(*seeds: int, memory: int = 8, **plan: Any) -> Agents:
    return Agents([named_rng(seed, "tests/agents") for seed in seeds], DIM, SACPlan(**plan), memory, LIKE)


def test_the_reward_by_hand() -> None:
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.0, 1.0, 0.0]]).double()
    got = reward(scores, torch.tensor([0, 1, 0])).tolist()
    assert got[0] == pytest.approx(4 * math.log(0.7) + 8 * math.log(0.5))
    assert got[1] == pytest.approx(4 * math.log(0.2) + 8 * math.log(1e-7))
    assert got[2] == pytest.approx(4 * math.log(torch.finfo(torch.float64).tiny) + 8 * math.log(1e-7))  # finite


def layers_of(stack: list[tuple[Tensor, Tensor]], agent: int) -> nn.Sequential:
    """One agent's network as modules."""
    made: list[nn.Module] = []
    for weight, bias in stack:
        layer = nn.Linear(weight.shape[1], weight.shape[2], dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(weight[agent].T)
            layer.bias.copy_(bias[agent, 0])
        made += [layer, nn.ReLU()]
    return nn.Sequential(*made[:-1])


class Literal:
    """One agent as its paper says it, with torch's own modules and distributions."""

    def __init__(self, made: Agents, agent: int, rng: np.random.Generator) -> None:
        count = len(made.rewards)
        self.plan, self.rng = made.plan, rng
        self.actor = layers_of(made.actor, agent)
        self.critics = [layers_of(made.critics, agent), layers_of(made.critics, count + agent)]
        self.slow = copy.deepcopy(self.critics)
        self.log_alpha = torch.zeros((), dtype=torch.float64, requires_grad=True)
        self.optimizers = [
            torch.optim.Adam(parameters, lr=made.plan.lr)
            for parameters in (
                self.actor.parameters(),
                [p for critic in self.critics for p in critic.parameters()],
                [self.log_alpha],
            )
        ]

    def sample(self, states: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.actor(states).split(DIM, dim=1)
        policy = torch.distributions.Normal(mean, log_std.clamp(-20, 2).exp())
        shape = (1, 1) if self.plan.shared_noise else (len(states), DIM)
        raw = mean + torch.from_numpy(self.rng.standard_normal(shape)) * policy.stddev
        actions = raw.tanh()
        each = policy.log_prob(raw) - (1 - actions**2 + 1e-6).log()
        return actions, each.mean(1) if self.plan.mean_log_probability else each.sum(1)

    def step(self, states: Tensor, actions: Tensor, rewards: Tensor) -> None:
        goals = rewards
        if not self.plan.terminal:
            with torch.no_grad():
                following, log_p = self.sample(actions)
                pair = torch.cat([actions, following], 1)
                least = torch.minimum(*[critic(pair)[:, 0] for critic in self.slow])
                goals = rewards + self.plan.gamma * (least - self.log_alpha.exp() * log_p)
        pair = torch.cat([states, actions], 1)
        self.descend(1, sum(0.5 * F.mse_loss(critic(pair)[:, 0], goals) for critic in self.critics))
        chosen, log_p = self.sample(states)
        alpha = self.log_alpha.detach().exp()
        self.descend(2, -(self.log_alpha * (log_p.detach() - DIM)).mean())
        pair = torch.cat([states, chosen], 1)
        value = torch.minimum(*[critic(pair)[:, 0] for critic in self.critics])
        self.descend(0, (alpha * log_p - value).mean())
        with torch.no_grad():
            for slow, fast in zip(self.slow, self.critics, strict=True):
                for mine, theirs in zip(slow.parameters(), fast.parameters(), strict=True):
                    mine.copy_((1 - self.plan.tau) * mine + self.plan.tau * theirs)

    def descend(self, which: int, loss: Any) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        self.optimizers[which].step()


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_side_by_side_is_one_by_one(terminal: bool, shared: bool) -> None:
    plan: dict[str, Any] = {"terminal": terminal, "shared_noise": shared, "mean_log_probability": shared, "tau": 0.3}
    made = agents(1, 2, batch_size=3, lr=0.01, **plan)
    apart = [Literal(made, agent, copy.deepcopy(made._rngs[agent])) for agent in (0, 1)]
    draw = np.random.default_rng(3)
    for episode in range(8):
        states, actions = (torch.from_numpy(draw.uniform(-1, 1, (2, DIM))) for _ in range(2))
        made.learn(states, actions, torch.from_numpy(draw.standard_normal(2)))
        for agent, alone in enumerate(apart):
            if episode >= 3:  # more memories than a batch
                kept = torch.from_numpy(alone.rng.choice(episode + 1, 3, replace=False, shuffle=False))
                assert len(set(kept.tolist())) == 3
                alone.step(made.states[agent, kept], made.actions[agent, kept], made.rewards[agent, kept])
    for agent, alone in enumerate(apart):
        x = torch.from_numpy(draw.standard_normal((4, 2 * DIM)))
        for stack, networks in (
            (made.critics, alone.critics),
            (made.slow, alone.slow if not terminal else []),
        ):
            for place, network in enumerate(networks):
                torch.testing.assert_close(layers_of(stack, 2 * place + agent)(x), network(x), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(layers_of(made.actor, agent)(x[:, :DIM]), alone.actor(x[:, :DIM]))
        assert made.log_alpha[agent].item() == pytest.approx(alone.log_alpha.item(), rel=1e-6)
    assert made.log_alpha.abs().min() > 1e-3


def test_a_goal_by_hand() -> None:
    # Slow critics that always say 5 and 3; α = 2; r = 1, γ = 0.5: 1 + 0.5 · (3 − 2 ln π).
    made = agents(0, terminal=False, gamma=0.5)
    with torch.no_grad():
        made.log_alpha.fill_(math.log(2))
        weight, bias = made.slow[-1]
        weight.zero_()
        bias.copy_(torch.tensor([5.0, 3.0]).view(2, 1, 1))
    states = torch.zeros(1, 1, DIM, dtype=torch.float64)
    rng = copy.deepcopy(made._rngs[0])
    log_p = Literal(made, 0, rng).sample(states[0])[1].item()
    got = made.goals(torch.ones(1, 1).double(), states).item()
    assert got == pytest.approx(1 + 0.5 * (3 - 2 * log_p))
    assert agents(0).goals(torch.ones(1, 1).double(), states).item() == 1  # the authors' episodes are over


def test_weights_start_as_the_authors() -> None:
    made = agents(0, 1)
    assert [tuple(weight.shape) for weight, _ in made.actor] == [(2, DIM, HIDDEN), (2, HIDDEN, HIDDEN), (2, HIDDEN, 4)]
    assert [len(weight) for weight, _ in made.critics] == [4, 4, 4]
    for (weight, _), edge in zip(made.critics, (1 / 16, 1 / 16, 3e-3), strict=True):
        assert 0.9 * edge < weight.abs().max() <= edge
    assert not torch.equal(made.actor[0][0][0], made.actor[0][0][1])


def test_shared_noise_moves_all_numbers_alike() -> None:
    state = torch.zeros(1, DIM).double()
    for shared in (True, False):
        made = agents(0, shared_noise=shared)
        mean, log_std = Literal(made, 0, np.random.default_rng()).actor(state).split(DIM, dim=1)
        noise = ((made.act(state).atanh() - mean) / log_std.exp()).detach()
        assert (abs(float(noise[0, 0] - noise[0, 1])) < 1e-9) == shared


@pytest.mark.slow
def test_an_agent_finds_the_top() -> None:
    made = agents(0, memory=500, batch_size=64, shared_noise=False, lr=2e-3)
    top, draw = torch.tensor([[0.5, -0.4]]).double(), np.random.default_rng(0)
    far: list[float] = []
    for _ in range(500):
        state = torch.from_numpy(draw.standard_normal((1, DIM)))
        action = made.act(state)
        far.append(float((action - top).norm()))
        made.learn(state, action, -10 * (action - top).square().sum(1))
    assert sum(far[-50:]) / 50 < 0.25
    assert sum(far[:50]) / 50 > 0.6


def test_the_best_image_of_all_episodes_is_kept_and_counted() -> None:
    settings = {"episodes": 60, "batch_size": 20, "shared_noise": False}
    target, told = hill(0.5, -0.4, sharpness=10.0), list[tuple[int, int, float]]()
    found = run(rlb(**settings), target, [1, 0], images_per_class=2, callback=lambda _, *rest: told.append(rest))
    assert found.cost.target_passes == 4 * 60
    assert [entry[:2] for entry in told] == [(25, 60), (50, 60), (60, 60)]
    assert found.latents.abs().max() < 1
    shorter = run(rlb(**settings | {"episodes": 30}), target, [1, 0], images_per_class=2)
    assert (found.scores >= shorter.scores).all()
    assert (found.scores > shorter.scores).any()
    assert found.scores[2:].min() > 0.7  # class 1
    assert not torch.equal(found.latents[2], found.latents[3])


@pytest.mark.parametrize("wrong", [{"episodes": 0}, {"batch_size": 0}, {"lr": 0}, {"gamma": 1.5}, {"tau": 0}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        rlb(**wrong)
