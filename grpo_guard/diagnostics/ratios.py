"""Ratios, clip decisions and gradient shares of every trained step, the core diagnostics."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from grpo_guard.clipping import Limits
from grpo_guard.metrics import Mean, Metric, histogram, mean, scalar, std
from grpo_guard.ratio import log_ratio_norm, log_ratio_raw
from grpo_guard.types import Replay, Schedule, map_tensors

EDGES = 0.05 * torch.sinh(torch.linspace(-7.6, 7.6, 97, dtype=torch.float64))
"""Histogram edges in units of the clip range: linear near 0, logarithmic out to 50 clip ranges."""


def ratio_metrics(replay: Replay, schedule: Schedule, limits: Limits) -> dict[str, Metric]:
    """Measure everything that is logged per trained step.

    These are the ratios minus 1 (`raw`, `norm`, and `own`, the one that is optimised), clip
    decisions by sign of the advantage, and the share of the gradient. Histograms are of log-ratios
    in units of half the width of their step's clip range, whose upper end is `clip/range`.
    """
    # On a GPU, each of these many numbers would be waited for.
    replay = map_tensors(replay, Tensor.cpu)
    schedule = map_tensors(schedule, Tensor.cpu)
    low, high = (limit.cpu() for limit in limits)
    half_width = (high - low) / 2
    upper_end = torch.expm1(high)
    gradient = float(replay.gradient.double().sum())
    log_ratios = {
        "raw": log_ratio_raw(replay.drift),
        "norm": log_ratio_norm(replay.drift),
        "own": replay.objective.log_ratio,
    }
    metrics: dict[str, Metric] = {}
    for step in schedule.trained.nonzero().flatten().tolist():
        at = replay.rows.step == step
        tt = f"{step:02d}"
        for kind, log_ratio in log_ratios.items():
            ratio = torch.expm1(log_ratio[at])
            metrics[f"ratio_{kind}/mean/{tt}"] = mean(ratio)
            metrics[f"ratio_{kind}/std/{tt}"] = std(ratio)
            metrics[f"ratio_{kind}/hist/{tt}"] = histogram(log_ratio[at] / half_width[step], EDGES)
        for name, share in clip_metrics(replay, at).items():
            metrics[f"clip/{name}/{tt}"] = share
        metrics[f"clip/range/{tt}"] = scalar(float(upper_end[step]))
        own_gradient = float(replay.gradient[at].double().sum())
        metrics[f"grad_share/{tt}"] = Mean(sum=own_gradient, count=gradient)
    return metrics


def clip_metrics(replay: Replay, at: Bool[Tensor, " R"]) -> dict[str, Metric]:
    """Measure the shares of the rows `at` outside the clip range.

    `high_pos_adv` and `low_neg_adv` are the shares on which the clip acts: above the range among
    rows with A > 0, below it among rows with A < 0.
    """
    high = replay.objective.high
    low = replay.objective.low
    advantage = replay.rows.advantage
    return {
        "high": mean(high[at].float()),
        "low": mean(low[at].float()),
        "high_pos_adv": mean(high[at & (advantage > 0)].float()),
        "low_neg_adv": mean(low[at & (advantage < 0)].float()),
    }
