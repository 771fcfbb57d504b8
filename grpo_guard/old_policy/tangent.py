"""How far the policy has moved, by its derivative along the change of its weights.

In half precision, old and new velocities are rounded one by one, and the difference of the two
roundings can be a hundred times as large as the change itself. The derivative of the velocity along
a change of the weights (a Jacobian-vector product) is linear in that change, so that rounding costs
it a fixed share, however small the change is. Taken in the middle between old and new weights, it
differs from the change of the velocity only in the third order (docs/adr/0021).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import ClassVar, final

import torch
import torch.autograd.forward_ad as forward_mode
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from grpo_guard.gaussian import trailing
from grpo_guard.old_policy import OldMeans
from grpo_guard.schema import component
from grpo_guard.types import Condition, Rows, Trajectory, Velocity

# The first derivative in forward mode lets torch call its own deprecated compiler.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)

LARGEST_TANGENT = 2.0**-6
"""Largest change of a weight that is differentiated along; others are scaled to it.

float16 loses numbers below 6e-8, and those above 65504.
"""


@component
class TangentOldPolicy:
    """Take the change of the means from the derivative along the change of the weights.

    It suits policies in float16 or bfloat16: the clip range then acts on what the policy has
    learned, not on rounding. It needs a copy of the trained weights, two more for a moment, and
    about two forwards for each row after the first update; before that, nothing has changed.
    """

    stores_means: ClassVar[bool] = False
    weight_copies: ClassVar[int] = 1

    def extra_forwards(self, updates: int) -> float:
        """Return 2 for the rows of every update but the first one."""
        return 2 * (updates - 1) / updates

    def __call__(self, policy: Velocity, trajectory: Trajectory, microbatch: int) -> OldMeans:
        """Return means that differ from the present ones by a derivative."""
        assert isinstance(policy, nn.Module)
        return TangentMeans(policy, trajectory)


@final
class TangentMeans(OldMeans):
    """Remembers the old weights, and so knows how far the means of any row have moved."""

    def __init__(self, policy: nn.Module, trajectory: Trajectory) -> None:
        self.policy = policy
        self.trajectory = trajectory
        self.old_weights = {
            name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad
        }

    @torch.no_grad()
    def measure_change(self, rows: Rows) -> Float[Tensor, "R ..."]:
        """Return new means minus old means, by the derivative in the middle between the weights."""
        trajectory = self.trajectory
        x = trajectory.x[rows.sample, rows.step]
        steps = trajectory.schedule[rows.step]
        new_weights = dict(self.policy.named_parameters())
        pairs = {name: (old, new_weights[name]) for name, old in self.old_weights.items()}
        scale = choose_scale(new - old for old, new in pairs.values())
        if scale == 0:
            return torch.zeros_like(x)
        dv = differentiate(
            self.policy,
            {name: (old + new) / 2 for name, (old, new) in pairs.items()},
            {name: scale * (new - old) for name, (old, new) in pairs.items()},
            x,
            steps.t,
            trajectory.condition[trajectory.batch.group[rows.sample]],
        )
        return trailing(steps.v_gain, x) * (dv / scale)


def choose_scale(changes: Iterable[Tensor]) -> float:
    """Return the power of two that makes the largest change about `LARGEST_TANGENT`; 0 without any.

    A power of two scales without rounding.
    """
    # Hundreds of adapters are compared where they are: each look at one would wait for a GPU.
    peaks = [change.abs().max() for change in changes]
    largest = float(torch.stack(peaks).max()) if peaks else 0.0
    return 2.0 ** math.floor(math.log2(LARGEST_TANGENT / largest)) if largest > 0 else 0.0


@torch.no_grad()
def differentiate(
    policy: nn.Module,
    weights: Mapping[str, Tensor],
    change: Mapping[str, Tensor],
    x: Float[Tensor, "R ..."],
    t: Float[Tensor, " R"],
    condition: Condition,
) -> Float[Tensor, "R ..."]:
    """Return the float32 derivative of a policy's velocity at `weights`, along their change."""
    # Only the plain attention has a derivative in forward mode, and compiled code has none.
    eager = torch.compiler.set_stance("force_eager")
    with eager, sdpa_kernel(SDPBackend.MATH), forward_mode.dual_level():
        duals = {
            name: forward_mode.make_dual(weight, change[name]) for name, weight in weights.items()
        }
        v = functional_call(policy, duals, (x, t, condition))
        tangent: Tensor = forward_mode.unpack_dual(v).tangent
    return tangent.float()
