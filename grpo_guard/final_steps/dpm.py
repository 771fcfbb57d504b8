"""A few steps of a faster solver after the last trained one."""

from __future__ import annotations

import torch
from diffusers import DPMSolverMultistepScheduler
from jaxtyping import Float
from torch import Tensor

from grpo_guard.types import Condition, Schedule, Velocity, component, require


@component
class Dpm:
    """`steps` steps of DPM-Solver++ (2M, arXiv 2211.01095), equal in t, as in MixGRPO-Flash (arXiv 2507.21802).

    Steps before the trained ones are not touched, those after them are not stored.
    """

    steps: int

    def __post_init__(self) -> None:
        require(self.steps > 0, f"steps={self.steps} is not positive; 2 to 4 are usual")

    def walked(self, schedule: Schedule) -> Schedule:
        """Up to the last trained step."""
        return schedule[: int(schedule.trained.nonzero()[-1]) + 1]

    def finish(
        self,
        policy: Velocity,
        x: Float[Tensor, "B ..."],
        t: Float[Tensor, ""],
        condition: Condition,
    ) -> Float[Tensor, "B ..."]:
        """Solve the ODE from t to 0."""
        solver = DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction"
        )
        solver.set_timesteps(self.steps)
        solver.sigmas = torch.linspace(float(t), 0, self.steps + 1)
        solver.timesteps = 1000 * solver.sigmas[:-1]
        for now in solver.timesteps:
            v = policy(x, (now / 1000).to(x).expand(len(x)), condition).float()
            x = solver.step(v, now, x, return_dict=False)[0]
        return x
