"""An exponential moving average."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from grpo_guard.ema import Averaged
from grpo_guard.types import component, require


@component
class Average:
    """average <- m average + (1 - m) weights after every `every` optimizer steps, m = min(decay, (1 + n) / (10 + n)).

    n counts the optimizer steps so far, so that the average soon forgets where training began. It is float32, and
    lives on the policy's device or, with `on_cpu`, in the host's memory; the weights that it replaces for a while wait
    in the same place.
    """

    decay: float
    every: int
    on_cpu: bool

    def __post_init__(self) -> None:
        require(0 < self.decay < 1, f"decay={self.decay} is outside (0, 1); .9 is usual, ema=none keeps no average")
        require(self.every > 0, f"every={self.every} is not positive; give the optimizer steps between two averages")

    def follow(self, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> Averaged:
        """Average after the optimizer's steps."""
        average, steps = [self._kept(p) for p in parameters], 0

        @torch.no_grad()
        def stepped(*_: object) -> None:
            nonlocal steps
            steps += 1
            if steps % self.every == 0:
                weights = [p.detach().to(a.device) for p, a in zip(parameters, average, strict=True)]
                torch._foreach_lerp_(average, weights, 1 - min(self.decay, (1 + steps) / (10 + steps)))

        @contextmanager
        def averaged() -> Iterator[None]:
            own = [self._kept(p) for p in parameters]
            _assign(parameters, average)
            try:
                yield
            finally:
                _assign(parameters, own)

        optimizer.register_step_post_hook(stepped)
        return averaged

    def _kept(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach().to("cpu" if self.on_cpu else parameter.device, torch.float32, copy=True)


@torch.no_grad()
def _assign(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
