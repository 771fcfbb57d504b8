"""Weights of denoising steps: how much of the gradient each one gets."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.types import Schedule


def uniform(schedule: Schedule) -> Float[Tensor, " T"]:
    """1."""
    return torch.ones_like(schedule.t)


def std(schedule: Schedule) -> Float[Tensor, " T"]:
    """s, with mean 1 over the trained steps (TempFlow-GRPO, arXiv 2508.04324)."""
    return schedule.std / schedule.std[schedule.trained].mean()


def inverse_dt(schedule: Schedule) -> Float[Tensor, " T"]:
    """1 / dt (GRPO-Guard, arXiv 2510.22319, Eq. 12)."""
    return 1 / (schedule.t - schedule.t_next)


def beta_over_dt(schedule: Schedule) -> Float[Tensor, " T"]:
    """beta_t / dt with beta_t = |d mean / d velocity| / dt, as printed for DanceGRPO (arXiv 2510.22319)."""
    return schedule.v_gain.abs() / (schedule.t - schedule.t_next).square()


def inverse_gain(schedule: Schedule) -> Float[Tensor, " T"]:
    """1 / |d mean / d velocity| = 1 / (beta_t dt): RatioNorm's gradient is then the same on every step (ours)."""
    return 1 / schedule.v_gain.abs()
