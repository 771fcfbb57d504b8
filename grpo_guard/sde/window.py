"""Which steps are stochastic and trained: all of them, or a range that stays, jumps or slides."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from grpo_guard import rng
from grpo_guard.types import component, require


@runtime_checkable
class Windowed(Protocol):
    """Chooses the stochastic steps of an iteration; the last step of a schedule is never among them."""

    def check(self, steps: int) -> None:
        """Refuse, with ConfigError, a window that a schedule of so many steps does not hold."""

    def size(self, steps: int) -> int:
        """How many steps of a schedule are inside: the same number in every iteration."""

    def steps(self, count: int, seed: int, iteration: int) -> Bool[Tensor, " T"]:
        """True inside the window."""


@component
class Window:
    """Steps `first` up to (not including) `last`; by default all but a schedule's last, which is never trained."""

    first: int = 0
    last: int | None = None

    def __post_init__(self) -> None:
        last = self.last
        require(self.first >= 0, f"first={self.first} is negative; count steps from 0")
        require(
            last is None or last > self.first,
            f"last={last} leaves no step; choose one above {self.first}",
        )

    def check(self, steps: int) -> None:
        """Refuse a window that a schedule of so many steps does not hold."""
        end = self.end(steps)
        require(
            end < steps,
            f"sde.window.last={end} reaches the last of {steps} steps, never trained; give at most {steps - 1}",
        )
        require(
            self.first < end,
            f"sde.window.first={self.first} leaves no trained step of {steps}; give less than {end}",
        )

    def end(self, steps: int) -> int:
        """The first step behind the window."""
        return steps - 1 if self.last is None else self.last

    def size(self, steps: int) -> int:
        """How many steps are inside."""
        return self.end(steps) - self.first

    def steps(self, count: int, seed: int, iteration: int) -> Bool[Tensor, " T"]:
        """True inside the window."""
        return _range(count, self.first, self.end(count))


@component
class Random:
    """`length` steps whose place within `within` is drawn anew every iteration (Flow-GRPO-Fast)."""

    length: int
    within: Window

    def __post_init__(self) -> None:
        require(self.length > 0, f"length={self.length} is not positive; 2 is usual")

    def check(self, steps: int) -> None:
        """Refuse a window that a schedule of so many steps does not hold."""
        _check_length(self.length, self.within, steps)

    def size(self, steps: int) -> int:
        """How many steps are inside."""
        return self.length

    def steps(self, count: int, seed: int, iteration: int) -> Bool[Tensor, " T"]:
        """True inside the window."""
        places = self.within.size(count) - self.length + 1
        first = self.within.first + rng.key(seed, iteration, "window") % places
        return _range(count, first, first + self.length)


@component
class Sliding:
    """`length` steps that move down the schedule by `stride` every `hold` iterations, and begin again at its end.

    The schedule of MixGRPO (arXiv 2507.21802); a last move shorter than the stride reaches the end of `within`.
    """

    length: int
    stride: int
    hold: int
    within: Window

    def __post_init__(self) -> None:
        for key in ("length", "stride", "hold"):
            require(getattr(self, key) > 0, f"{key}={getattr(self, key)} is not positive")

    def check(self, steps: int) -> None:
        """Refuse a window that a schedule of so many steps does not hold."""
        _check_length(self.length, self.within, steps)

    def size(self, steps: int) -> int:
        """How many steps are inside."""
        return self.length

    def steps(self, count: int, seed: int, iteration: int) -> Bool[Tensor, " T"]:
        """True inside the window."""
        room = self.within.size(count) - self.length
        turns = -(-room // self.stride) + 1
        first = self.within.first + min(iteration // self.hold % turns * self.stride, room)
        return _range(count, first, first + self.length)


def _range(count: int, first: int, last: int) -> Bool[Tensor, " T"]:
    index = torch.arange(count)
    return (index >= first) & (index < last)


def _check_length(length: int, within: Window, steps: int) -> None:
    within.check(steps)
    room = within.size(steps)
    require(
        length <= room,
        f"sde.window.length={length} is more than the {room} steps it moves in; give less",
    )
