"""Averages of the weights along training, which evaluations and checkpoints use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

from torch import nn

P = ParamSpec("P")
T = TypeVar("T")


@runtime_checkable
class Averaged(Protocol):
    """The average of a policy's weights."""

    def __call__(self) -> AbstractContextManager[None]:
        """Return a context in which the policy has its averaged weights."""

    def update(self) -> None:
        """Add the weights to the average; called after every optimizer step."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to resume."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from what `state_dict` returned."""


@runtime_checkable
class Ema(Protocol):
    """Decides which weights evaluations and checkpoints use."""

    @property
    def every(self) -> int:
        """Optimizer steps between two updates of the average."""

    @property
    def device_copies(self) -> int:
        """Float32 copies of each trainable parameter that stay on the policy's device."""

    def follow(self, parameters: Sequence[nn.Parameter]) -> Averaged:
        """Start an average of the parameters, from their present values."""


def within(averaged: Averaged, function: Callable[P, T]) -> Callable[P, T]:
    """Wrap a function so that the policy has its averaged weights while it runs."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with averaged():
            return function(*args, **kwargs)

    return wrapped
