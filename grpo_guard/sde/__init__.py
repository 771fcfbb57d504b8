"""From a velocity to a Gaussian step."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.sde.ode import Ode
from grpo_guard.sde.window import Windowed
from grpo_guard.types import Schedule

Gains = tuple[Float[Tensor, " T"], Float[Tensor, " T"], Float[Tensor, " T"]]


@runtime_checkable
class Sde(Protocol):
    """A family of steps `x_next = x_gain x + v_gain v + std eps`."""

    @property
    def window(self) -> Windowed:
        """Which steps are stochastic."""

    @property
    def level(self) -> float:
        """How much noise, 0 for none."""

    def gains(self, t: Float[Tensor, " T"], t_next: Float[Tensor, " T"]) -> Gains:
        """(x_gain, v_gain, std) of the steps t -> t_next, float64; times in [0, 1], 1 is noise."""


def schedule(sde: Sde, times: Float[Tensor, " T1"], address: tuple[int, int] = (0, 0)) -> Schedule:
    """The steps between `times`: stochastic inside the window, the ODE outside it; the last is never trained.

    `address` is (seed, iteration), on which the window's place may depend.
    """
    t, t_next = times[:-1].double(), times[1:].double()
    inside = sde.window.steps(len(t), *address)
    noisy, plain = sde.gains(t, t_next), Ode().gains(t, t_next)
    x_gain, v_gain, std = (
        torch.where(inside, a, b).float() for a, b in zip(noisy, plain, strict=True)
    )
    return Schedule(
        t=t.float(), t_next=t_next.float(), x_gain=x_gain, v_gain=v_gain, std=std, trained=inside
    )
