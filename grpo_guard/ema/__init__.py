"""The average of the weights along training, by which a policy is judged and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from typing import ParamSpec, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

P = ParamSpec("P")
T = TypeVar("T")

Averaged = Callable[[], AbstractContextManager[None]]
"""Within it, the policy has its averaged weights."""


@runtime_checkable
class Ema(Protocol):
    """Which weights evaluations and checkpoints see."""

    def follow(self, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> Averaged:
        """Keep an average of the parameters up to date after the optimizer's steps."""


def within(averaged: Averaged, function: Callable[P, T]) -> Callable[P, T]:
    """The function, called while the policy has its averaged weights."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        with averaged():
            return function(*args, **kwargs)

    return called
