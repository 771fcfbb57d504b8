"""Where prompts come from, and which of them an iteration asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from grpo_guard import rng
from grpo_guard.types import Batch, Prompt, map_tensors, record, require


@record
class Split:
    """Prompts to train on, and prompts never trained on.

    Their tags come `in_turn`, however many prompts each has, or as often as they have prompts.
    """

    train: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]
    in_turn: bool = False

    def accepted(self, accepts: Callable[[Prompt], bool]) -> Split:
        """The prompts that a reward can score; raises ConfigError if a side is left empty."""
        train, heldout = (tuple(filter(accepts, side)) for side in (self.train, self.heldout))
        require(
            bool(train),
            f"none of the {len(self.train)} training prompts suits this reward; choose another data= or reward=",
        )
        require(
            bool(heldout),
            f"none of the {len(self.heldout)} held-out prompts suits this reward; choose another data= or reward=",
        )
        return replace(self, train=train, heldout=heldout)


@runtime_checkable
class Data(Protocol):
    """A source of prompts; an iteration draws `prompts` of them and asks for `repeats` samples of each."""

    prompts: int
    repeats: int

    def load(self) -> Split:
        """All prompts, in an order that never changes; raises ConfigError where there are none."""


def plan(data: Data, split: Split, seed: int, iteration: int) -> Batch:
    """The batch of an iteration, a pure function of its arguments."""
    first = iteration * data.prompts
    group = torch.arange(data.prompts).repeat_interleave(data.repeats)
    drawn = draw(split.train, split.in_turn, range(first, first + data.prompts), seed, "plan")
    return Batch(prompts=drawn, group=group, sample=torch.arange(len(group)), total=len(group))


def shuffled_places(total: int, *address: int | str) -> Int[Tensor, " N"]:
    """The place of each of `total` samples in the shuffled order of an iteration at (seed, iteration).

    Sample i belongs to update `places[i] % updates`, whatever the processes; within an update they are dealt in turn.
    """
    return torch.tensor(rng.permutation(total, *address, "minibatches")).argsort()


def deal(batch: Batch, address: tuple[int, int], updates: int, rank: int, processes: int) -> Batch:
    """The samples of a whole batch that live on one process: as many of each update on every process."""
    mine = (shuffled_places(batch.total, *address) // updates) % processes == rank
    return map_tensors(batch, lambda x: x[mine])


def draw(
    prompts: Sequence[Prompt], in_turn: bool, positions: Iterable[int], *address: int | str
) -> tuple[Prompt, ...]:
    """Prompts at some positions of an endless sequence of shuffled epochs, or of one for each tag in turn."""
    tags: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        tags.setdefault(prompt.tag if in_turn else "", []).append(prompt)
    turns = [(tags[tag], rng.key(*address, tag)) for tag in sorted(tags)]
    return tuple(_shuffled(*turns[p % len(turns)], p // len(turns)) for p in positions)


def _shuffled(prompts: Sequence[Prompt], seed: int, position: int) -> Prompt:
    """The prompt at a position of the endless sequence of shuffled epochs."""
    epoch, place = divmod(position, len(prompts))
    return prompts[rng.permutation(len(prompts), seed, epoch)[place]]
