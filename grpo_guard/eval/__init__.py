"""What a run is judged by: held-out prompts, fixed noise, rewards that are never trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.backbone import Model
from grpo_guard.data import Split
from grpo_guard.metrics import Metrics
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.reward import Reward, Scorer
from grpo_guard.types import Verdict, record


@record
class Proxy:
    """What is trained on, loaded."""

    reward: Reward
    score: Scorer


@record
class Evaluation:
    """Metrics of the policy, and a few pictures with their captions and what the rewards say of each."""

    metrics: Metrics
    images: Float[Tensor, "N 3 H W"]
    captions: tuple[str, ...]
    verdicts: tuple[Verdict, ...]


Evaluate = Callable[[int], Evaluation]
"""Evaluates the policy that enters an iteration, or returns NOTHING where no evaluation is due."""

NOTHING = Evaluation(metrics={}, images=torch.zeros(0, 3, 1, 1), captions=(), verdicts=())


@runtime_checkable
class Eval(Protocol):
    """The recipe of an evaluation."""

    def load(
        self, model: Model, split: Split, proxy: Proxy, ranks: Ranks, iterations: int
    ) -> Evaluate:
        """Prepare prompts and gold rewards for a run of so many iterations."""
