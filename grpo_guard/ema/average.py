"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from grpo_guard.ema import Averaged
from grpo_guard.schema import Advice, Fraction, PositiveInt, component, require


@component
class Average:
    """Average the weights: average <- m * average + (1 - m) * weights.

    m = min(decay, (1 + n) / (10 + n)) after n optimizer steps: a young average forgets quickly
    where training began. The average is float32.
    """

    decay: Annotated[Fraction, Advice(".9 is usual, ema=none keeps no average")]
    """Largest weight of the old average, between 0 and 1; 0.9 is usual in RL fine-tuning."""
    every: Annotated[PositiveInt, Advice("give the optimizer steps between two averages")]
    """Optimizer steps between two updates of the average, 1 or more."""
    on_cpu: bool
    """Where the average is kept. true: in the host's memory. false: on the policy's device.

    While an evaluation uses the average, the replaced weights wait in the same place.
    """

    @property
    def device_copies(self) -> int:
        """One copy, the average, unless it is on the CPU."""
        return 0 if self.on_cpu else 1

    def follow(self, parameters: Sequence[nn.Parameter]) -> Averaged:
        """Start an average from the present weights.

        Raises ConfigError under ZeRO stage 3, which leaves the parameters empty between forwards.
        """
        whole = all(p.numel() for p in parameters)
        require(
            whole,
            "ema=average cannot average the shards of strategy=zero3; use strategy=zero2 or fsdp",
        )
        return _MovingAverage(self, parameters)


class _MovingAverage:
    """The average of some parameters, and the number of optimizer steps that it has seen."""

    def __init__(self, recipe: Average, parameters: Sequence[nn.Parameter]) -> None:
        self.recipe = recipe
        self.parameters = parameters
        self.steps = 0
        self.average = self._copy_weights()

    def _copy_weights(self) -> list[Tensor]:
        """Return float32 copies of the present weights, on the device of the average."""
        devices = ["cpu" if self.recipe.on_cpu else p.device for p in self.parameters]
        return [
            p.detach().to(device, torch.float32, copy=True)
            for p, device in zip(self.parameters, devices, strict=True)
        ]

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        if self.steps % self.recipe.every:
            return
        weights = [p.detach().to(a) for p, a in zip(self.parameters, self.average, strict=True)]
        decay = min(self.recipe.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.average, weights, 1 - decay)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        own = self._copy_weights()
        _assign(self.parameters, self.average)
        try:
            yield
        finally:
            _assign(self.parameters, own)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps} | {str(i): average for i, average in enumerate(self.average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]
        _assign(self.average, [state[str(i)] for i in range(len(self.average))])


@torch.no_grad()
def _assign(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
