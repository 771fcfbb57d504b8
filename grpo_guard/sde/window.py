"""Chooses the steps that are stochastic and trained: all of them, or a range that may move."""

from __future__ import annotations

from typing import Annotated, Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from grpo_guard import rng
from grpo_guard.schema import Advice, NonNegativeInt, PositiveInt, component, require


@runtime_checkable
class StepWindow(Protocol):
    """Chooses the stochastic steps of an iteration; they never include the last step."""

    def check(self, steps: int) -> None:
        """Raise ConfigError if the window does not fit a schedule of `steps` steps."""

    def size(self, steps: int) -> int:
        """Return the number of steps inside, which is the same in every iteration."""

    def steps(self, count: int, seed: int, iteration: int) -> Bool[Tensor, " T"]:
        """Return True for each of `count` steps that is inside the window."""


@component
class Window:
    """Make the same range of steps stochastic in every iteration."""

    first: Annotated[NonNegativeInt, Advice("count steps from 0")] = 0
    """First step of the range, counted from 0."""
    last: int | None = None
    """Step at which the range ends (not included); null: the schedule's last, which is never
    trained."""

    def __post_init__(self) -> None:
        require(
            self.last is None or self.last > self.first,
            f"last={self.last} leaves no step; choose one above {self.first}",
        )

    def check(self, steps: int, key: str = "sde.window") -> None:
        """Raise ConfigError if the window, at a key, does not fit a schedule of `steps` steps."""
        end = self.end(steps)
        require(
            end < steps,
            f"{key}.last={end} includes the last of {steps} steps, which is never trained;"
            f" give at most {steps - 1}",
        )
        require(
            self.first < end,
            f"{key}.first={self.first} leaves no trained step of {steps}; give less than {end}",
        )

    def end(self, steps: int) -> int:
        """Return the first step after the window."""
        return steps - 1 if self.last is None else self.last

    def size(self, steps: int) -> int:
        """Return the number of steps inside."""
        return self.end(steps) - self.first

    def steps(self, count: int, seed: int, iteration: int) -> Bool[Tensor, " T"]:
        """Return True for each of `count` steps that is inside the window."""
        return _range(count, self.first, self.end(count))


@component
class Random:
    """Make a few steps stochastic, at a place drawn anew every iteration (Flow-GRPO-Fast)."""

    length: Annotated[PositiveInt, Advice("2 is usual")]
    """Number of stochastic steps; 2 is usual."""
    within: Window
    """Range of steps in which the window may lie."""

    def check(self, steps: int) -> None:
        """Raise ConfigError if the window does not fit a schedule of `steps` steps."""
        _check_length(self.length, self.within, steps)

    def size(self, steps: int) -> int:
        """Return the number of steps inside."""
        return self.length

    def steps(self, count: int, seed: int, iteration: int) -> Bool[Tensor, " T"]:
        """Return True for each of `count` steps that is inside the window."""
        places = self.within.size(count) - self.length + 1
        first = self.within.first + rng.key(seed, iteration, "window") % places
        return _range(count, first, first + self.length)


@component
class Sliding:
    """Make a few steps stochastic that move down the schedule (MixGRPO, arXiv:2507.21802).

    After the end, the window starts again. The last move is shorter if the stride does not fit.
    """

    length: PositiveInt
    """Number of stochastic steps."""
    stride: PositiveInt
    """Number of steps that the window moves at a time."""
    hold: PositiveInt
    """Number of iterations between two moves."""
    within: Window
    """Range of steps in which the window moves."""

    def check(self, steps: int) -> None:
        """Raise ConfigError if the window does not fit a schedule of `steps` steps."""
        _check_length(self.length, self.within, steps)

    def size(self, steps: int) -> int:
        """Return the number of steps inside."""
        return self.length

    def steps(self, count: int, seed: int, iteration: int) -> Bool[Tensor, " T"]:
        """Return True for each of `count` steps that is inside the window."""
        room = self.within.size(count) - self.length
        moves = -(-room // self.stride)  # rounded up
        move = iteration // self.hold % (moves + 1)
        first = self.within.first + min(move * self.stride, room)
        return _range(count, first, first + self.length)


def _range(count: int, first: int, last: int) -> Bool[Tensor, " T"]:
    index = torch.arange(count)
    return (index >= first) & (index < last)


def _check_length(length: int, within: Window, steps: int) -> None:
    within.check(steps, "sde.window.within")
    room = within.size(steps)
    require(
        length <= room,
        f"sde.window.length={length} is more than the {room} steps that it moves in; give less",
    )
