"""Advantages without a signal: a control that shows what the size of the steps does alone."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard import rng
from grpo_guard.advantage import Advantage
from grpo_guard.schema import component
from grpo_guard.types import Rewards


@component
class Shuffled:
    """Shuffle the advantages of another rule within each group.

    Updates are as large as with the rule itself, but no sample is preferred for its reward. Where
    a policy changes under these advantages, it drifts; it does not optimise.
    """

    rule: Advantage
    """How rewards become the advantages that are shuffled (conf/advantage)."""

    def __call__(self, rewards: Rewards, group: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return the shuffled advantages; a sample that could not be scored keeps its 0."""
        advantages = self.rule(rewards, group)
        shuffled = advantages.clone()
        # The rewards of all processes are the same everywhere, so a seed that is made of them needs
        # no state, and every process shuffles alike.
        seed = rng.key("shuffled", repr(rewards.total.tolist()))
        for number in group.unique().tolist():
            rows = ((group == number) & ~rewards.failed).nonzero().flatten()
            order = rng.permutation(len(rows), seed, number)
            shuffled[rows] = advantages[rows[torch.tensor(order, device=rows.device)]]
        return shuffled
