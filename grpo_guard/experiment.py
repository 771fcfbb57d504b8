"""The experiment: the parts of a run."""

from __future__ import annotations

import torch
from torch import nn

from grpo_guard.advantage import Advantage
from grpo_guard.backbone import Backbone
from grpo_guard.clipping import Clipping
from grpo_guard.data import Data, Split
from grpo_guard.ema import Ema
from grpo_guard.eval import Eval
from grpo_guard.final_steps import FinalSteps
from grpo_guard.kl import Kl
from grpo_guard.lifecycle.batches import BatchSizes
from grpo_guard.lifecycle.checkpoint import Checkpoints
from grpo_guard.logger import Logger
from grpo_guard.old_policy import OldPolicy
from grpo_guard.parallel.learner import Optim
from grpo_guard.reward import Reward
from grpo_guard.sde import Sde
from grpo_guard.strategy import Strategy
from grpo_guard.types import ConfigError, component, require
from grpo_guard.watch import Watch


@component
class Experiment:
    """One run: its parts, and the handful of numbers that belong to none of them.

    `steps` denoising steps per rollout, `updates` optimizer steps per iteration, each on its own share of the samples;
    `steps_per_sample` of the trained steps are replayed for each sample (null: all); `microbatch` rows are forwarded at
    a time, in rollout and replay alike, so that an unchanged policy replays to a log-ratio of exactly 0. An update
    whose gradient is not finite is skipped; more than `max_skipped` in a row stop the run. Rewards are computed group
    by group; where `asynchronous`, in a thread, while further samples are drawn. With `selftest`, the reward must
    first tell known pictures apart. `resume` is auto (go on from the newest state in `output`), never, or a state to
    begin from.
    """

    backbone: Backbone
    data: Data
    sde: Sde
    reward: Reward
    watch: Watch
    advantage: Advantage
    clipping: Clipping
    kl: Kl
    old_policy: OldPolicy
    final_steps: FinalSteps
    ema: Ema
    optim: Optim
    strategy: Strategy
    logger: Logger
    eval: Eval
    checkpoint: Checkpoints
    seed: int
    iterations: int
    steps: int
    updates: int
    microbatch: int
    steps_per_sample: int | None
    max_grad_norm: float
    max_failed: float
    max_skipped: int
    asynchronous: bool
    selftest: bool
    resume: str
    output: str

    def __post_init__(self) -> None:
        for key in ("iterations", "updates", "microbatch", "max_grad_norm"):
            require(getattr(self, key) > 0, f"{key}={getattr(self, key)} is not positive")
        require(self.steps > 1, f"steps={self.steps} leaves no trained step; give 2 or more")
        require(
            self.sde.level > 0,
            "sde=ode has no noise, so there is no ratio to clip; choose sde=flow, dance or cps",
        )
        require(
            0 <= self.max_failed <= 1,
            f"max_failed={self.max_failed} is outside [0, 1]; it is a share of the images",
        )
        self.sde.window.check(self.steps)
        trained = self.sde.window.size(self.steps)
        require(
            self.steps_per_sample is None or 0 < self.steps_per_sample <= trained,
            f"steps_per_sample={self.steps_per_sample} is outside 1..{trained}, the trained steps; give null for all",
        )
        _ = self.batch_sizes
        _check_optimizer(self)

    @property
    def batch_sizes(self) -> BatchSizes:
        """The batches of an iteration; raises ConfigError where they do not divide."""
        return BatchSizes(
            prompts=self.data.prompts,
            repeats=self.data.repeats,
            rows=self.steps_per_sample or self.sde.window.size(self.steps),
            updates=self.updates,
            processes=self.strategy.processes,
            microbatch=self.microbatch,
        )

    def split(self) -> Split:
        """The prompts that the reward accepts; raises ConfigError where there are none."""
        return self.data.load().accepted(self.reward.accepts)


def _check_optimizer(exp: Experiment) -> None:
    """Let the optimizer judge its own settings, on a parameter of no account."""
    try:
        exp.optim([nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optim cannot be used ({error}); see conf/optim") from error
