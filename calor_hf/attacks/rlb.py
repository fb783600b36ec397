"""RLB-MI: an agent for each image learns which latents the target rewards, from scores alone."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from calor_hf.attacks._sac import Agents, SACPlan
from calor_hf.attacks.base import ATTACKS, Attack, AttackConfig, Task
from calor_hf.attacks.queries import Queries, rows_of
from calor_hf.core.config import setting
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.core.seeding import named_rng
from calor_hf.generators import Generator
from calor_hf.targets.base import ScoreTarget

CALLBACK_EVERY = 25
AGENT_IMAGES = 8  # an agent's networks and memory weigh as much as some eight images


@dataclass(frozen=True, kw_only=True)
class RLBConfig(AttackConfig):
    """Settings of :class:`RLB`."""

    episodes: int = setting(40_000, "Actions of an agent, one an episode.", ge=1, scales_to=1)
    lr: float = setting(5e-4, "Learning rate of Adam, of all networks.", gt=0)
    batch_size: int = setting(256, "Remembered episodes of an update.", ge=1)
    gamma: float = setting(0.99, "Discount; without effect where episodes are terminal.", ge=0, le=1)
    tau: float = setting(0.01, "Share that slow critics take over; without effect likewise.", gt=0, le=1)
    terminal: bool = setting(True, "An episode ends with its action.")
    shared_noise: bool = setting(True, "One random number for all numbers of an action, as the authors' code.")
    mean_log_probability: bool = setting(True, "Log-probabilities are means over an action's numbers; false: sums.")

    def plan(self) -> SACPlan:
        """How the agents learn."""
        return SACPlan(**{f.name: getattr(self, f.name) for f in fields(SACPlan)})


@ATTACKS.register("rlb")
class RLB(Attack[RLBConfig]):
    """Reinforcement learning of latents that the target's scores reward (Han et al., CVPR 2023).

    An agent gives one image, the one with the highest score of all its actions; k images of a class cost k agents.

    Quirks of the authors' code: episodes end with their only action, so that discount and slow critics have no effect
    (``terminal``); an action's log-probability is a mean over its numbers (``mean_log_probability``), against a target
    entropy of minus their count, which it cannot reach, so that the temperature falls all the time; and the noise is
    one number for all of an action, even for a whole batch (``shared_noise``; preset ``original`` only), so that an
    agent needs the many episodes.

    Cost of an image: ``episodes`` queries; 40 000 are 200 000 for the five images of a class.

    Source:
        Han et al., "Reinforcement Learning-Based Black-Box Model Inversion Attacks", CVPR 2023, arXiv:2304.04625;
        HanGyojin/RLB-MI. Preset ``calor``: MIBench's length, a tenth.
    """

    config_class = RLBConfig
    access = "scores"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"calor": {"episodes": 4000, "shared_noise": False}}

    def rows(self, images_per_class: int) -> int:
        """Number of images whose memory a class takes."""
        return AGENT_IMAGES * images_per_class

    def attack(
        self, target: ScoreTarget, generator: Generator[Any], labels: Sequence[int], task: Task
    ) -> Reconstruction:
        """Reconstruct some classes at once."""
        queries = Queries(target, generator, task.seed)
        rows = rows_of(labels, task.images_per_class)
        wanted = torch.tensor([label for label, _ in rows], device=task.like.device)
        starts = [named_rng(task.seed, "attacks/rlb/states", *row) for row in rows]
        own = [named_rng(task.seed, "attacks/rlb/agents", *row) for row in rows]
        agents = Agents(own, generator.latent_dim, self.config.plan(), self.config.episodes, task.like)
        best = torch.full((len(rows),), -torch.inf, device=task.like.device)
        latents = task.like.new_zeros(len(rows), generator.latent_dim)
        scores = best
        for episode in range(self.config.episodes):
            states = torch.cat([generator.sample_latents(1, rng) for rng in starts]).to(task.like)
            actions = agents.act(states)
            # The authors weigh the old latent in the next state with 0, so that next state and action are one latent.
            # They query it as both, and the action of a fresh state, which the next episode queries anyway.
            answers = queries(actions, wanted, rows, episode)
            scores = answers.gather(1, wanted[:, None]).squeeze(1)
            best = best.to(scores)
            latents = torch.where((scores > best)[:, None], actions, latents)
            best = torch.maximum(best, scores)
            agents.learn(states, actions, reward(answers, wanted).to(states))
            last = episode + 1 == self.config.episodes
            if task.callback is not None and ((episode + 1) % CALLBACK_EVERY == 0 or last):
                share = float((answers.argmax(dim=1) == wanted).double().mean())
                task.callback(labels, episode + 1, self.config.episodes, share)
        return queries.reconstruction(latents, wanted, best)


def reward(scores: Tensor, labels: Tensor) -> Tensor:
    """2 ln p of the state's image, 2 ln p of the action's, which is the same, and 8 ln of the lead over the next class.

    Args:
        scores: (rows, classes) probabilities.
        labels: (rows,).

    Returns:
        (rows,) in nats; a lead of less than 1e-7, or none, counts as 1e-7.
    """
    own = scores.gather(1, labels[:, None]).squeeze(1)
    others = scores.scatter(1, labels[:, None], 0.0).amax(dim=1)
    # The view gives probabilities, so no log-softmax; the bound keeps an underflowed one finite.
    likely = own.clamp_min(torch.finfo(scores.dtype).tiny).log()
    return 4 * likely + 8 * (own - others).clamp_min(1e-7).log()
