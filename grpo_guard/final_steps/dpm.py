"""A few steps of a faster solver after the last trained one."""

from __future__ import annotations

from typing import Annotated

import torch
from diffusers import DPMSolverMultistepScheduler
from jaxtyping import Float
from torch import Tensor

from grpo_guard.schema import Advice, AtMost, Positive, PositiveInt, component
from grpo_guard.types import Condition, Schedule, Velocity


@component
class Dpm:
    """Finish a trajectory by DPM-Solver++ (2M, arXiv 2211.01095), as MixGRPO-Flash (2507.21802).

    The steps before the last trained one stay as they are; the solver's own latents are not
    stored. Its times are MixGRPO's: equally spaced before the time shift, then shifted. Its first
    step is of first order, because no velocity of the trained steps is kept; MixGRPO's uses one.
    """

    steps: Annotated[PositiveInt, AtMost(1000), Advice("2 to 4 are usual")]
    """Steps of the solver, each a forward of the policy; 2 to 4 are usual."""
    shift: Annotated[Positive, Advice("give that of the checkpoint's schedule")]
    """Time shift of the checkpoint's schedule; positive. 3 for SD3.5, 1.88 for FLUX.1 at 512 px.

    Times are t = shift u / (1 + (shift - 1) u) with u equally spaced; 1 spaces t itself equally.
    """

    def stored_steps(self, schedule: Schedule) -> Schedule:
        """Return the steps up to the last trained one."""
        return schedule[: int(schedule.trained.nonzero()[-1]) + 1]

    def times(self, t: float) -> Float[Tensor, " N1"]:
        """Return the solver's `steps + 1` times from t down to 0, equal before the shift."""
        start = t / (self.shift - (self.shift - 1) * t)
        even = torch.linspace(start, 0, self.steps + 1)
        return self.shift * even / (1 + (self.shift - 1) * even)

    def finish(
        self,
        policy: Velocity,
        x: Float[Tensor, "B ..."],
        t: Float[Tensor, ""],
        condition: Condition,
    ) -> Float[Tensor, "B ..."]:
        """Solve the ODE from latents x at time t to time 0."""
        solver = DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction"
        )
        solver.set_timesteps(self.steps)
        # The solver can space its times in several ways, but not from a given time to 0.
        solver.sigmas = self.times(float(t))
        solver.timesteps = 1000 * solver.sigmas[:-1]
        for now in solver.timesteps:
            v = policy(x, (now / 1000).to(x).expand(len(x)), condition).float()
            x = solver.step(v, now, x, return_dict=False)[0]
        return x
