"""Turns velocities into Gaussian steps; each step is three numbers (docs/adr/0005)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.sde.flow import Gains, Times
from grpo_guard.sde.ode import Ode
from grpo_guard.sde.window import StepWindow
from grpo_guard.types import Schedule


@runtime_checkable
class Sde(Protocol):
    """A family of steps `x_next = x_gain x + v_gain v + std eps`."""

    @property
    def window(self) -> StepWindow:
        """The stochastic steps of each iteration."""

    @property
    def level(self) -> float:
        """The amount of noise; 0 means none."""

    def gains(self, t: Times, t_next: Times) -> Gains:
        """Return (x_gain, v_gain, std) of the steps t -> t_next in float64.

        Times are in [0, 1] and fall; 1 is noise.
        """


def schedule(sde: Sde, times: Float[Tensor, " T1"], address: tuple[int, int] = (0, 0)) -> Schedule:
    """Return the steps between `times`: stochastic inside the window, the ODE outside it.

    `address` is (seed, iteration), which decides where a moving window is. Steps outside the window
    are not trained; the window never contains the last step.
    """
    t, t_next = times[:-1].double(), times[1:].double()
    inside = sde.window.steps(len(t), *address)
    stochastic = sde.gains(t, t_next)
    deterministic = Ode().gains(t, t_next)
    x_gain, v_gain, std = (
        torch.where(inside, a, b).float() for a, b in zip(stochastic, deterministic, strict=True)
    )
    return Schedule(
        t=t.float(), t_next=t_next.float(), x_gain=x_gain, v_gain=v_gain, std=std, trained=inside
    )
