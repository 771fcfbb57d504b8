"""An exponential moving average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from grpo_guard.ema import Averaged
from grpo_guard.types import component, require


class _Mean:
    """The average of some parameters after so many steps."""

    def __init__(self, recipe: Average, parameters: Sequence[nn.Parameter]) -> None:
        self.recipe, self.parameters, self.steps = recipe, parameters, 0
        self.average = self._copies()

    def _copies(self) -> list[Tensor]:
        """The weights as they are, where averages are kept."""
        devices = ["cpu" if self.recipe.on_cpu else p.device for p in self.parameters]
        return [
            p.detach().to(d, torch.float32, copy=True)
            for p, d in zip(self.parameters, devices, strict=True)
        ]

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        if self.steps % self.recipe.every == 0:
            weights = [
                p.detach().to(a.device) for p, a in zip(self.parameters, self.average, strict=True)
            ]
            decay = min(self.recipe.decay, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(self.average, weights, 1 - decay)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        own = self._copies()
        _assign(self.parameters, self.average)
        try:
            yield
        finally:
            _assign(self.parameters, own)

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps} | {str(i): average for i, average in enumerate(self.average)}

    def load(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]
        _assign(self.average, [state[str(i)] for i in range(len(self.average))])


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
        require(
            0 < self.decay < 1,
            f"decay={self.decay} is outside (0, 1); .9 is usual, ema=none keeps no average",
        )
        require(
            self.every > 0,
            f"every={self.every} is not positive; give the optimizer steps between two averages",
        )

    def follow(self, parameters: Sequence[nn.Parameter]) -> Averaged:
        """Begin with the parameters as they are; raises ConfigError where they are not here."""
        whole = all(p.numel() for p in parameters)
        require(
            whole,
            "ema=average needs parameters that strategy=zero3 holds in pieces; use zero2, or fsdp",
        )
        return _Mean(self, parameters)


@torch.no_grad()
def _assign(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
