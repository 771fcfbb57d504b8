"""The experiment: the parts of a run, and the numbers that belong to none of them."""

from __future__ import annotations

from typing import Annotated

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
from grpo_guard.parallel.costs import WHOLE
from grpo_guard.parallel.learner import Optim
from grpo_guard.parallel.optimizer import check_optimizer_settings
from grpo_guard.reward import Reward, make_filter
from grpo_guard.schema import (
    LATENT_BYTES,
    MAY_BE_INFINITE,
    Advice,
    AtMost,
    ConfigError,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Rule,
    Share,
    component,
    require,
)
from grpo_guard.sde import Sde
from grpo_guard.strategy import Strategy
from grpo_guard.watch import Watch

AUTO = "auto"
"""The microbatch that is chosen by trying it."""
LARGEST_AUTO = 64
"""The largest microbatch that auto chooses; more rows at a time are hardly faster."""
_REMEDY = "give 1 or more, or auto"
Microbatch = Annotated[
    int | str,
    Rule(lambda x: x == AUTO or not isinstance(x, str), "is no number", _REMEDY),
    Rule(lambda x: isinstance(x, str) or x > 0, "is not positive", _REMEDY),
    Advice(_REMEDY),
]
"""A number of rows, or AUTO."""


@component
class Experiment:
    """One run. Raises ConfigError if its settings do not fit each other."""

    backbone: Backbone
    """The model that is trained, and how it computes."""
    data: Data
    """Where prompts come from, and how many an iteration draws."""
    sde: Sde
    """The stochastic denoising steps of a rollout."""
    reward: Reward
    """The proxy reward: what is trained on."""
    watch: Watch
    """What else is measured of every picture, besides the reward."""
    advantage: Advantage
    """How rewards become advantages."""
    clipping: Clipping
    """The objective: which ratio, which step weight, which clip range."""
    kl: Kl
    """Penalty on the distance from the model as it was loaded."""
    old_policy: OldPolicy
    """Where the old policy's means come from."""
    final_steps: FinalSteps
    """How a rollout ends after its last trained step."""
    ema: Ema
    """The average of the weights that evaluations and checkpoints use."""
    optim: Annotated[Optim, Advice("give a choice of conf/optim")]
    """The optimizer."""
    strategy: Strategy
    """Where a run computes, and how its processes share the policy."""
    logger: Logger
    """Where numbers and pictures go."""
    eval: Eval
    """How the policy is judged on held-out prompts."""
    checkpoint: Checkpoints
    """When states and checkpoints are saved."""
    seed: int
    """Seed of all randomness: prompts, noise, initial adapters."""
    iterations: PositiveInt
    """How many times to draw, score and update; positive."""
    steps: Annotated[
        int,
        Rule(lambda x: x > 1, "leaves no trained step", "give 2 or more"),
        AtMost(10_000, unit_bytes=LATENT_BYTES),
    ]
    """Denoising steps of a rollout, 2 or more."""
    updates: PositiveInt
    """Optimizer steps of an iteration, each on its own share of the samples; positive."""
    microbatch: Microbatch
    """Rows that are forwarded at a time, in rollout and replay alike, so that an unchanged policy
    replays to a log-ratio of exactly 0; positive.

    auto: at most 64, halved until a rehearsal before training fits the memory. It works in one
    process, and leaves eval.microbatch and backbone.microbatch alone.
    """
    steps_per_sample: int | None
    """Trained steps that are replayed of each sample; null: all."""
    max_grad_norm: Annotated[Positive, MAY_BE_INFINITE]
    """Norm to which the gradient is clipped; positive. inf: it is not clipped."""
    max_failed: Annotated[Share, Advice("it is a share of the images")]
    """Share of the images that may fail to be scored before the run stops, in [0, 1]."""
    max_skipped: NonNegativeInt
    """Updates in a row that may be skipped, because their gradient is not finite, before the run
    stops."""
    asynchronous: bool
    """True: rewards are computed in a thread while further samples are drawn."""
    selftest: bool
    """True: before training begins, the reward must prefer the right ones of known pictures."""
    resume: str
    """auto: continue from the newest state in `output`; never: start anew; or the folder of a
    state to start from."""
    output: str
    """The run folder."""
    keep_trajectory: NonNegativeInt | None = None
    """An iteration of which the run keeps what it drew and used, in trajectory/, so that
    scripts/verify_run.py can compute its numbers again. null: none."""

    def __post_init__(self) -> None:
        require(
            self.sde.level > 0,
            "sde=ode has no noise, so there is no ratio to clip; choose sde=flow, dance or cps",
        )
        self.sde.window.check(self.steps)
        trained = self.sde.window.size(self.steps)
        require(
            self.steps_per_sample is None or 0 < self.steps_per_sample <= trained,
            f"steps_per_sample={self.steps_per_sample} is outside 1..{trained}, the trained steps;"
            " give null for all",
        )
        require(
            self.keep_trajectory is None or self.keep_trajectory < self.iterations,
            f"keep_trajectory={self.keep_trajectory} is not one of {self.iterations} iterations;"
            f" give at most {self.iterations - 1}, as they are counted from 0",
        )
        require(
            not self.eval.stop_on_over_optimisation or self.checkpoint.best is not None,
            "eval.stop_on_over_optimisation=true needs a best checkpoint to keep;"
            " give checkpoint.best, such as eval/gold/exact",
        )
        require(
            self.old_policy.weight_copies == 0 or self.strategy.shares == WHOLE,
            "old_policy=tangent needs the whole policy in every process; give strategy=single or"
            " ddp, or old_policy=replay",
        )
        require(
            self.microbatch != AUTO or self.strategy.processes == 1,
            f"microbatch=auto works in one process, not in {self.strategy.processes}; give a"
            " number",
        )
        _ = self.batch_sizes  # raises if they do not divide
        _check_optimizer(self.optim)

    @property
    def batch_sizes(self) -> BatchSizes:
        """The batches of an iteration; raises ConfigError if they do not divide.

        With microbatch=auto, they are those that the rehearsal begins with.
        """
        sizes = BatchSizes(
            prompts=self.data.prompts,
            repeats=self.data.repeats,
            rows=self.steps_per_sample or self.sde.window.size(self.steps),
            updates=self.updates,
            processes=self.strategy.processes,
            microbatch=1 if isinstance(self.microbatch, str) else self.microbatch,
        )
        return sizes.largest(LARGEST_AUTO) if self.microbatch == AUTO else sizes

    def split(self) -> Split:
        """Load the prompts that the reward accepts; raises ConfigError if there are none."""
        return self.data.load().select(make_filter("reward", self.reward))


def _check_optimizer(optim: Optim) -> None:
    """Let the optimizer check its own settings, and step, on a parameter that nothing uses."""
    check_optimizer_settings(getattr(optim, "keywords", {}))
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    try:
        optim([parameter]).step()
    except (
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        RuntimeError,
        AttributeError,
    ) as error:
        settings = getattr(optim, "keywords", {}).items()
        texts = [f"optim.{key}={value}" for key, value in settings if isinstance(value, str)]
        fault = f"{texts[0]} is no number" if texts else f"optim cannot be used ({error})"
        raise ConfigError(f"{fault}; see conf/optim") from error
    # Adam without eps divides 0 by 0.
    require(
        bool(parameter.isfinite()),
        "optim makes weights NaN where their gradient is 0; give optim.eps=1e-8",
    )
