"""Sources of prompts, and the prompts of each iteration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from hashlib import blake2b
from socket import gethostname
from typing import Annotated, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from grpo_guard import rng
from grpo_guard.messages import warn_once
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.schema import LATENT_BYTES, AtMost, PositiveInt, Rule, record, require
from grpo_guard.types import Batch, Prompt, map_tensors

Prompts = Annotated[PositiveInt, AtMost(100_000, unit_bytes=2 * LATENT_BYTES)]
"""Prompts of an iteration, each with two samples or more."""
Repeats = Annotated[
    int,
    Rule(lambda x: x > 1, "leaves nothing to compare in a group", "give 2 or more"),
    AtMost(10_000, unit_bytes=LATENT_BYTES),
]
"""Samples of a prompt, which are a group."""
MOST_NAMED = 3
"""Ranks that a message names at most."""


@record
class Split:
    """Prompts to train on, and prompts that are never trained on."""

    train: tuple[Prompt, ...]
    """Prompts that iterations draw."""
    heldout: tuple[Prompt, ...]
    """Prompts for evaluations."""
    in_turn: bool = False
    """True: every tag is drawn equally often. False: every prompt is drawn equally often."""
    files: str = ""
    """The setting that names the user's file, such as "data.path=train.txt"; prompts of it that a
    reward cannot score are counted in a line. Empty: the prompts are not a user's."""

    @cached_property
    def hashes(self) -> Mapping[str, str]:
        """A hash of the prompts of each side, in their order and with what they demand."""
        sides = {"training": self.train, "held-out": self.heldout}
        return {name: blake2b(repr(side).encode()).hexdigest() for name, side in sides.items()}

    def select(self, accepts: Callable[[Prompt], bool]) -> Split:
        """Keep the prompts that a reward can score; raises ConfigError if a side would be empty."""
        sides = {}
        for name, prompts in (("training", self.train), ("held-out", self.heldout)):
            sides[name] = tuple(filter(accepts, prompts))
            require(
                bool(sides[name]),
                f"none of the {len(prompts)} {name} prompts suits this reward;"
                " choose another data= or reward=",
            )
            if self.files and len(sides[name]) < len(prompts):
                other = next(prompt for prompt in prompts if not accepts(prompt))
                # Prompts are read again whenever a run is prepared.
                warn_once(
                    f"{self.files}: {len(sides[name])} of {len(prompts)} {name} prompts suit the"
                    f" reward (first that does not: {other.text!r})"
                )
        return replace(self, train=sides["training"], heldout=sides["held-out"])


def require_shared_prompts(split: Split, ranks: Ranks) -> None:
    """Raise ConfigError on every process if one of them has read other prompts than rank 0.

    Each process reads the files itself, and machines may hold different copies of them. The images
    of an iteration would then belong to other prompts on each machine.
    """
    everyone = ranks.all_gather((gethostname(), dict(split.hashes)), "prompts")
    machine, first = everyone[0]
    others = [
        f"rank {rank} on {name}" for rank, (name, hashes) in enumerate(everyone) if hashes != first
    ]
    sides = [side for side in first if any(hashes[side] != first[side] for _, hashes in everyone)]
    named = others if len(others) <= MOST_NAMED else [*others[:MOST_NAMED], "others"]
    require(
        not others,
        f"{split.files or 'data'}: the {' and '.join(sides)} prompts of {', '.join(named)} are not"
        f" those of rank 0 on {machine}; give all machines the same files, and the same version"
        " of grpo_guard",
    )


@runtime_checkable
class Data(Protocol):
    """A source of prompts.

    An iteration draws `prompts` of them and makes `repeats` samples of each.
    """

    prompts: int
    repeats: int

    def load(self) -> Split:
        """Return all prompts, always in the same order; raises ConfigError if there are none."""


def plan(data: Data, split: Split, seed: int, iteration: int) -> Batch:
    """Return the batch of an iteration, which depends on the arguments and on nothing else."""
    first = iteration * data.prompts
    positions = range(first, first + data.prompts)
    group = torch.arange(data.prompts).repeat_interleave(data.repeats)
    return Batch(
        prompts=pick_prompts(split.train, split.in_turn, positions, seed, "plan"),
        group=group,
        sample=torch.arange(len(group)),
        total=len(group),
    )


def shuffled_places(total: int, *address: int | str) -> Int[Tensor, " N"]:
    """Return the place of each of `total` samples in the shuffled order of an iteration.

    The address is (seed, iteration). Sample i belongs to update `places[i] % updates`, whatever the
    number of processes; the processes then take the samples of an update one after the other.
    """
    return torch.tensor(rng.permutation(total, *address, "minibatches")).argsort()


def deal(batch: Batch, address: tuple[int, int], updates: int, rank: int, processes: int) -> Batch:
    """Return the samples of a whole batch that live on one process.

    Every process gets the same number of samples of each update.
    """
    is_mine = (shuffled_places(batch.total, *address) // updates) % processes == rank
    return map_tensors(batch, lambda x: x[is_mine])


def pick_prompts(
    prompts: Sequence[Prompt], in_turn: bool, positions: Iterable[int], *address: int | str
) -> tuple[Prompt, ...]:
    """Return the prompts at some positions of an endless sequence of shuffled epochs.

    With `in_turn`, each tag has its own sequence, and the tags take turns.
    """
    tags: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        tags.setdefault(prompt.tag if in_turn else "", []).append(prompt)
    sequences = [(tags[tag], rng.key(*address, tag)) for tag in sorted(tags)]
    # An epoch is shuffled once, not again for each of its prompts.
    shuffle = cache(rng.permutation)
    picked = []
    for position in positions:
        turn, tag = divmod(position, len(sequences))
        members, seed = sequences[tag]
        epoch, place = divmod(turn, len(members))
        picked.append(members[shuffle(len(members), seed, epoch)[place]])
    return tuple(picked)
