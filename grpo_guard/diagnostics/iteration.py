"""Numbers of an iteration that are not ratios: rewards, updates, progress, memory."""

from __future__ import annotations

import math

import torch
from jaxtyping import Int
from torch import Tensor

from grpo_guard.diagnostics.memory import peak_bytes
from grpo_guard.experiment import Experiment
from grpo_guard.metrics import Clock, Largest, Metrics, mean, scalar
from grpo_guard.schema import RunError
from grpo_guard.types import Replay, Rewards


def reward_metrics(rewards: Rewards, group: Int[Tensor, " B"]) -> Metrics:
    """Measure the rewards, the shares that failed, and the share of groups that teach nothing."""
    parts = {f"reward/{name}": mean(values) for name, values in rewards.parts.items()}
    failures = {
        f"reward/failed/{name}": mean(1.0 - rewards.parts[name].isfinite().float())
        for name in rewards.weights
    }
    groups = [rewards.total[(group == g) & ~rewards.failed] for g in group.unique()]
    constant = [len(totals) == 0 or bool(totals.max() == totals.min()) for totals in groups]
    spreads = [totals.std(correction=0) for totals in groups if len(totals)]
    return {
        **parts,
        **failures,
        "reward/total": mean(rewards.total),
        "reward/failed": mean(rewards.failed.float()),
        "reward/group_std": mean(torch.tensor(spreads)),
        "advantage/zero_std_groups": mean(torch.tensor(constant).float()),
    }


def update_metrics(replay: Replay, lr: float, grad_norm: float) -> Metrics:
    """Measure an optimizer step; `grad_norm` is the gradient's norm before clipping."""
    is_finite = math.isfinite(grad_norm)
    return {
        "loss/policy": mean(replay.objective.loss),
        "loss/kl": mean(replay.penalty),
        # The norm of a skipped update is no number; that of the others is not lost with it.
        "grad_norm": mean(torch.tensor([grad_norm if is_finite else math.nan])),
        "update/skipped": scalar(float(not is_finite)),
        "lr": scalar(lr),
    }


def progress_metrics(
    exp: Experiment, iteration: int, clock: Clock, device: torch.device
) -> Metrics:
    """Measure how far the run has come, how fast, and in how much memory of the device."""
    done = iteration + 1
    samples = exp.batch_sizes.samples
    return {
        "images": scalar(done * samples),
        "update": scalar(done * exp.updates),
        "time/total": scalar(clock.total),
        "throughput/images_per_s": scalar(samples / clock.total),
        "memory/peak_bytes": Largest(value=peak_bytes(device)),
    }


def check_failures(metrics: Metrics, key: str, limit: float) -> None:
    """Raise RunError if more than a share `limit` of the images could not be scored.

    `metrics` has the share at `key` and the share of each reward below it.
    """
    shares = {
        name.removeprefix(key).strip("/"): metric.value
        for name, metric in metrics.items()
        if name == key or name.startswith(f"{key}/")
    }
    worst = max(shares.values(), default=0.0)
    if worst > limit:
        failing = ", ".join(name for name, share in shares.items() if name and share)
        raise RunError(
            f"{worst:.1%} of the images could not be scored, over max_failed={limit:g};"
            f" fix the reward {failing}"
        )
