"""The floating-point operations of an iteration, counted on tensors without storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from torch.utils.flop_counter import FlopCounterMode

from grpo_guard.cost.random_weights import META, Untrained, call_policy
from grpo_guard.experiment import Experiment
from grpo_guard.pipeline.model import PipelineModel
from grpo_guard.pipeline.recipe import PipelineRecipe
from grpo_guard.schema import record

PEAK_FLOPS: Mapping[str, float] = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}
"""Operations per second by a part of the device's name; the first that fits counts.

They are the makers' figures for dense bfloat16 matrices.
"""


@record
class Work:
    """Floating-point operations of the policy and the reference in an iteration, on one process.

    Operations that are repeated to save memory do not count. Divided by seconds and by the
    device's peak, they give the model FLOPs utilisation (MFU, arXiv:2204.02311).
    """

    rollout: float
    """Operations of the rollout."""
    update: float
    """Operations of all updates, with the forwards of an old policy or a reference."""


def predict_work(exp: Experiment) -> Work:
    """Count the operations of an iteration; raises ConfigError for an unknown architecture."""
    recipe = cast(PipelineRecipe, exp.backbone)
    # The count does not depend on the dtypes; float32 needs no autocast, and checkpointing would
    # count forwards twice.
    plain = replace(recipe, dtype="float32", text_dtype="float32", gradient_checkpointing=False)
    forward, forward_and_backward = count_flops_per_row(Untrained(recipe=plain).load(META))
    sizes = exp.batch_sizes
    extra_forwards = exp.old_policy.extra_forwards(exp.updates) + exp.kl.reference_forwards
    rows = sizes.updates * sizes.rows_per_update
    return Work(
        rollout=exp.steps * sizes.samples_here * forward,
        update=rows * (forward_and_backward + extra_forwards * forward),
    )


def count_flops_per_row(model: PipelineModel) -> tuple[float, float]:
    """Count the operations of one latent: (its forward, its forward and backward).

    Classifier-free guidance is included. The model is on the meta device.
    """
    with FlopCounterMode(display=False) as counter:
        v = call_policy(model, rows=1)
        forward = counter.get_total_flops()
        v.sum().backward()
        return forward, counter.get_total_flops()


def find_peak(device: str) -> float | None:
    """Return the operations per second of a device by its name; None for an unknown device."""
    return next((flops for name, flops in PEAK_FLOPS.items() if name in device), None)
