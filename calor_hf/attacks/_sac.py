"""Soft actor-critic for several agents at once; what RLB-MI learns with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

HIDDEN = 256
LEAST_LOG_STD, MOST_LOG_STD = -20.0, 2.0

Layers = list[tuple[Tensor, Tensor]]
"""Weights (agents, inputs, outputs) and biases (agents, 1, outputs) of linear layers with ReLU between them."""


@dataclass(frozen=True)
class SACPlan:
    """Hyperparameters of the agents; the defaults are RLB-MI's.

    Attributes:
        lr: Learning rate of all networks and the temperature (Adam).
        gamma: Discount.
        tau: Weight of the critics in the update of the slow critics after each step.
        batch_size: Remembered episodes per step.
        terminal: An episode ends with its only action, so the critics learn the reward alone.
        shared_noise: A call draws one random number, used for every number of every action.
        mean_log_probability: An action's log-probability is the mean over its numbers, not their sum.
    """

    lr: float = 5e-4
    gamma: float = 0.99
    tau: float = 1e-2
    batch_size: int = 256
    terminal: bool = True
    shared_noise: bool = True
    mean_log_probability: bool = True


class Agents:
    """Independent agents that learn in one batch, each with its own random stream.

    Args:
        rngs: Stream of each agent.
        dim: Dimension of a state and of an action.
        plan: Hyperparameters.
        memory: Number of episodes that are remembered.
        like: Device and precision.
    """

    def __init__(self, rngs: Sequence[np.random.Generator], dim: int, plan: SACPlan, memory: int, like: Tensor) -> None:
        self.plan, self.dim, self._rngs, self._like = plan, dim, rngs, like
        self.actor = _stack([_actor(rng, dim) for rng in rngs], like)
        # Both critics of every agent, one after the other, as one stack.
        self.critics = _stack([_critic(rng, dim) for _ in range(2) for rng in rngs], like)
        self.slow = [(weight.detach().clone(), bias.detach().clone()) for weight, bias in self.critics]
        self.log_alpha = like.new_zeros(len(rngs)).requires_grad_(True)
        self.target_entropy = -float(dim)
        self.remembered = 0
        self.states, self.actions = (like.new_zeros(len(rngs), memory, dim) for _ in range(2))
        self.rewards = like.new_zeros(len(rngs), memory)
        self._actor_weights, self._critic_weights = ([t for pair in layers for t in pair]
                                                     for layers in (self.actor, self.critics))  # fmt: skip
        self._optimizers = [
            torch.optim.Adam(weights, lr=plan.lr)
            for weights in (self._actor_weights, self._critic_weights, [self.log_alpha])
        ]

    @torch.no_grad()
    def act(self, states: Tensor) -> Tensor:
        """(agents, dim) actions in (−1, 1) from (agents, dim) states."""
        return self.sample(states[:, None])[0].squeeze(1)

    def sample(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (agents, n, dim) of states (agents, n, dim), and their log-probabilities (agents, n)."""
        mean, log_std = forward(self.actor, states).chunk(2, dim=2)
        std = log_std.clamp(LEAST_LOG_STD, MOST_LOG_STD).exp()
        # The authors' code draws one number for a whole batch of actions, so that an agent explores a line only.
        noise = self._normal(1, 1) if self.plan.shared_noise else self._normal(*states.shape[1:])
        actions = torch.tanh(mean + noise * std)
        density = -0.5 * noise.square() - std.log() - 0.5 * math.log(2 * math.pi)
        # Change of variables by the Tanh; 1e-6 keeps it finite for an action at ±1 within rounding.
        each = density - (1 - actions.square() + 1e-6).log()
        return actions, each.mean(dim=2) if self.plan.mean_log_probability else each.sum(dim=2)

    def values(self, critics: Layers, states: Tensor, actions: Tensor) -> Tensor:
        """(2, agents, n) values that both critics give actions."""
        pairs = torch.cat([states, actions], dim=2)
        return forward(critics, pairs.repeat(2, 1, 1)).view(2, len(pairs), -1)

    @torch.no_grad()
    def goals(self, rewards: Tensor, following: Tensor) -> Tensor:
        """(agents, n) regression targets of the critics: r, or r + γ (min Q(s′, a′) − α ln π(a′ | s′)).

        Args:
            rewards: (agents, n).
            following: (agents, n, dim) next states.
        """
        if self.plan.terminal:
            return rewards
        actions, log_probability = self.sample(following)
        value = self.values(self.slow, following, actions).amin(dim=0)
        return rewards + self.plan.gamma * (value - self.log_alpha.exp()[:, None] * log_probability)

    def learn(self, states: Tensor, actions: Tensor, rewards: Tensor) -> None:
        """Store an episode of every agent, and learn from a batch once more episodes than that are stored.

        Args:
            states: (agents, dim) at the start.
            actions: (agents, dim), which are the next states too.
            rewards: (agents,).
        """
        place = self.remembered
        self.states[:, place], self.actions[:, place], self.rewards[:, place] = states, actions, rewards
        self.remembered += 1
        if self.remembered > self.plan.batch_size:
            count, size = self.remembered, self.plan.batch_size
            drawn = np.stack([rng.choice(count, size, replace=False, shuffle=False) for rng in self._rngs])
            chosen = torch.from_numpy(drawn).to(self._like.device)
            rows = torch.arange(len(chosen), device=chosen.device)[:, None]
            self._step(self.states[rows, chosen], self.actions[rows, chosen], self.rewards[rows, chosen])

    def _step(self, states: Tensor, actions: Tensor, rewards: Tensor) -> None:
        descend_actor, descend_critics, descend_alpha = self._optimizers
        goals = self.goals(rewards, actions)
        # Summed over agents, so that each descends on the mean of its own batch: nothing couples them.
        misses = self.values(self.critics, states, actions) - goals
        _descend(descend_critics, self._critic_weights, 0.5 * misses.square().mean(dim=2).sum())

        chosen, log_probability = self.sample(states)
        alpha = self.log_alpha.detach().exp()
        # Detached: the temperature follows the randomness of the actor, and does not train it.
        wanted = (log_probability.detach() + self.target_entropy).mean(dim=1)
        _descend(descend_alpha, [self.log_alpha], -(self.log_alpha * wanted).sum())
        # The authors' actor follows the first critic; the smaller value of both is what a twin is for.
        value = self.values(self.critics, states, chosen).amin(dim=0)
        _descend(descend_actor, self._actor_weights, (alpha[:, None] * log_probability - value).mean(dim=1).sum())
        if not self.plan.terminal:
            for slow, fast in zip(self.slow, self.critics, strict=True):
                for mine, theirs in zip(slow, fast, strict=True):
                    mine.lerp_(theirs.detach(), self.plan.tau)

    def _normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(np.stack([rng.standard_normal(shape) for rng in self._rngs])).to(self._like)


def forward(layers: Layers, x: Tensor) -> Tensor:
    """(agents, n, outputs) from (agents, n, inputs)."""
    for weight, bias in layers[:-1]:
        x = F.relu(torch.baddbmm(bias, x, weight))
    weight, bias = layers[-1]
    return torch.baddbmm(bias, x, weight)


def _descend(optimizer: torch.optim.Optimizer, weights: list[Tensor], loss: Tensor) -> None:
    for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        weight.grad = slope
    optimizer.step()


def _actor(rng: np.random.Generator, dim: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [_linear(rng, a, b) for a, b in ((dim, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 2 * dim))]


def _critic(rng: np.random.Generator, dim: int) -> list[tuple[np.ndarray, np.ndarray]]:
    # The authors' bounds: by the outputs in the hidden layers, and nearly nothing in the last.
    hidden = 1 / math.sqrt(HIDDEN)
    sizes = ((2 * dim, HIDDEN, hidden), (HIDDEN, HIDDEN, hidden), (HIDDEN, 1, 3e-3))
    return [_linear(rng, a, b, bound) for a, b, bound in sizes]


def _linear(
    rng: np.random.Generator, inputs: int, outputs: int, bound: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    usual = 1 / math.sqrt(inputs)
    edge = usual if bound is None else bound
    return rng.uniform(-edge, edge, (inputs, outputs)), rng.uniform(-usual, usual, (1, outputs))


def _stack(networks: list[list[tuple[np.ndarray, np.ndarray]]], like: Tensor) -> Layers:
    def joined(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(parts)).to(like).requires_grad_(True)

    return [
        (joined([network[i][0] for network in networks]), joined([network[i][1] for network in networks]))
        for i in range(len(networks[0]))
    ]
