"""How a policy is judged: held-out prompts, fixed noise, rewards that are never trained on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable

import torch

from grpo_guard.backbone import Model
from grpo_guard.data import Split
from grpo_guard.eval.alarm import Alarm
from grpo_guard.metrics import Metrics
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.reward import Reward, Scorer
from grpo_guard.schema import record
from grpo_guard.types import Pictures


@record
class Proxy:
    """The reward that is trained on, loaded."""

    reward: Reward
    """The component."""
    score: Scorer
    """Its scorer."""


@record
class Evaluation:
    """The result of an evaluation, on this process."""

    metrics: Metrics
    """`eval/...` metrics of this process's prompts."""
    pictures: Pictures
    """Pictures and scores of all processes."""


@runtime_checkable
class Evaluate(Protocol):
    """A loaded evaluation."""

    def __call__(
        self, iteration: int, averaged: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> Evaluation:
        """Evaluate the policy that enters an iteration, or return NOTHING if that is not due.

        The policy is drawn from within a context of `averaged`, in which it has other weights.
        """


NOTHING = Evaluation(
    metrics={},
    pictures=Pictures(images=torch.zeros(0, 3, 1, 1), captions=(), scores=(), by_prompt={}),
)
"""The result when no evaluation is due."""


@record
class EvaluationCost:
    """What an evaluation draws and holds, so that memory can be predicted."""

    prompts: int
    """Prompts of all processes that are drawn in one go; each has one sample."""
    encoded_prompts: int
    """Prompts whose encodings stay on the device throughout the run."""
    steps: int
    """Denoising steps of a sample."""
    resolution: int | None
    """Height and width of an image in pixels; None: those of training."""
    microbatch: int
    """Samples that are drawn together."""
    uses_reference: bool
    """Whether the policy is compared with the reference."""
    resident_bytes: int
    """Bytes of the gold rewards' weights that stay on the device throughout the run."""
    visiting_bytes: int
    """Bytes of the largest gold reward that is on the device during an evaluation only."""


@runtime_checkable
class Eval(Protocol):
    """The recipe of an evaluation."""

    @property
    def alarm(self) -> Alarm:
        """When a run counts as over-optimising."""

    @property
    def stop_on_over_optimisation(self) -> bool:
        """Whether a run ends where it over-optimises."""

    @property
    def cost(self) -> EvaluationCost:
        """What an evaluation draws and holds."""

    def load(
        self, model: Model, split: Split, proxy: Proxy, ranks: Ranks, iterations: int
    ) -> Evaluate:
        """Prepare prompts and gold rewards for a run of so many iterations."""
