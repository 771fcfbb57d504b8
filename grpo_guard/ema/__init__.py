"""The average of the weights along training, by which a policy is judged and kept."""

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
    """An average of some parameters."""

    def __call__(self) -> AbstractContextManager[None]:
        """Within it, the policy has its averaged weights."""

    def update(self) -> None:
        """Take the weights as they are after an optimizer step."""

    def state(self) -> dict[str, Any]:
        """What a run goes on from."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""


@runtime_checkable
class Ema(Protocol):
    """Which weights evaluations and checkpoints see."""

    def follow(self, parameters: Sequence[nn.Parameter]) -> Averaged:
        """Begin an average of the parameters."""


def within(averaged: Averaged, function: Callable[P, T]) -> Callable[P, T]:
    """The function, called while the policy has its averaged weights."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        with averaged():
            return function(*args, **kwargs)

    return called
