"""Weights of the denoising steps: how much each contributes to the gradient."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.types import Schedule


def uniform(schedule: Schedule) -> Float[Tensor, " T"]:
    """Weigh all steps alike: 1."""
    return torch.ones_like(schedule.t)


def std(schedule: Schedule) -> Float[Tensor, " T"]:
    """Weigh by s, scaled to mean 1 over the trained steps (TempFlow-GRPO, arXiv 2508.04324)."""
    return schedule.std / schedule.std[schedule.trained].mean()


def inverse_dt(schedule: Schedule) -> Float[Tensor, " T"]:
    """Weigh by 1 / dt (GRPO-Guard, arXiv 2510.22319, Eq. 12)."""
    return 1 / (schedule.t - schedule.t_next)


def beta_over_dt(schedule: Schedule) -> Float[Tensor, " T"]:
    """Weigh by beta_t / dt, as the paper prints it for DanceGRPO (arXiv 2510.22319).

    beta_t = |d mean / d velocity| / dt.
    """
    return schedule.v_gain.abs() / (schedule.t - schedule.t_next).square()


def inverse_gain(schedule: Schedule) -> Float[Tensor, " T"]:
    """Weigh by 1 / (beta_t dt) = 1 / |d mean / d velocity| (ours).

    RatioNorm's gradient with respect to the velocity is then the same on every step.
    """
    return 1 / schedule.v_gain.abs()


def earlier_half(schedule: Schedule) -> Float[Tensor, " T"]:
    """Weigh the earlier half of the trained steps 1, the others 0; a step in the middle is earlier.

    To ask which steps do harm: no published objective uses it.
    """
    return _number_trained(schedule).le((1 + schedule.trained.sum()) // 2).to(schedule.t)


def later_half(schedule: Schedule) -> Float[Tensor, " T"]:
    """Weigh the steps 1 that `earlier_half` weighs 0, and those 0 that it weighs 1."""
    return 1 - earlier_half(schedule)


def _number_trained(schedule: Schedule) -> Int[Tensor, " T"]:
    """Number the trained steps from 1 on; a step before them has 0, one after them the last."""
    return schedule.trained.cumsum(0)
