"""How many floating-point operations the policy takes in an iteration, counted on tensors without storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from grpo_guard.cost.random_weights import Untrained
from grpo_guard.experiment import Experiment
from grpo_guard.kl.none import NoKl
from grpo_guard.old_policy.replay import Replay
from grpo_guard.pipeline.model import Checkpoint, PipelineModel
from grpo_guard.types import record

META = torch.device("meta")
PEAKS: Mapping[str, float] = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}
"""Operations a second that makers give for dense bfloat16 matrices, by what is in a device's name."""


@record
class Work:
    """Operations of a process in the `rollout` and the `update` of an iteration.

    Those of networks alone, without what is computed again to save memory: divided by seconds and by what the device
    could do, they are the model's FLOPs utilisation (MFU, arXiv:2204.02311).
    """

    rollout: float
    update: float


def predict(exp: Experiment) -> Work:
    """Of the policy, and of a reference where there is a penalty; raises ConfigError for unknown architectures."""
    recipe = cast(Checkpoint, exp.backbone)
    plain = replace(recipe, dtype="float32", text_dtype="float32", gradient_checkpointing=False)
    forward, both = of_a_row(Untrained(recipe=plain).load(META))
    batch_sizes = exp.batch_sizes
    rows = batch_sizes.updates * batch_sizes.rows_per_update
    again = isinstance(exp.old_policy, Replay) + (not isinstance(exp.kl, NoKl))
    return Work(
        rollout=exp.steps * batch_sizes.samples_here * forward,
        update=rows * (both + again * forward),
    )


def of_a_row(model: PipelineModel) -> tuple[float, float]:
    """Of a forward of one latent, guidance included, and of that with its backward."""
    with FlopCounterMode(display=False) as counter:
        v = _asked(model)
        forward = counter.get_total_flops()
        v.sum().backward()
        return forward, counter.get_total_flops()


def _asked(model: PipelineModel) -> Tensor:
    """A velocity."""
    condition = model.encode([""])[torch.zeros(1, dtype=torch.long)]
    v: Tensor = model.policy(
        torch.empty(1, *model.shape, device=META), torch.empty(1, device=META), condition
    )
    return v


def peak(device: str) -> float | None:
    """What a device of this name can do in a second, if it is known here."""
    return next((operations for name, operations in PEAKS.items() if name in device), None)
