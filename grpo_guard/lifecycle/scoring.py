"""Decoding and scoring the samples of a rollout while others are being drawn."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.metrics import Metrics
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.reward import Scorer
from grpo_guard.types import Batch, Rewards, concatenate, map_tensors, record
from grpo_guard.watch import Look


@record
class Scored:
    """Samples and their rewards."""

    rewards: Rewards
    group: Int[Tensor, " B"]
    sample: Int[Tensor, " B"]


class Immediately(Executor):
    """Does at once what it is given."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """The finished call."""
        done: Future[Rewards] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class Scoring:
    """Takes the latents of a batch in order, a few samples at a time, and scores every group as soon as it is whole.

    Groups are scored one by one, by a thread where `asynchronous`, so that rewards see the same images together
    whether they wait for the rollout or not, and are the same. Their notes are not kept. What is `seen` beside a
    group's rewards is complete once all are `scored`.
    """

    def __init__(
        self,
        decode: Callable[[Tensor], Tensor],
        score: Scorer,
        look: Look,
        batch: Batch,
        *,
        asynchronous: bool,
    ) -> None:
        self.decode, self.score, self.batch, self.prompts = (
            decode,
            score,
            batch,
            batch.prompts_by_sample(),
        )
        self.look, self.seen = look, list[Metrics]()
        self.worker: Executor = ThreadPoolExecutor(1) if asynchronous else Immediately()
        self.images, self.taken = dict[int, Tensor](), 0
        self.rows, self.found = list[list[int]](), list[Future[Rewards]]()

    def take(self, latents: Float[Tensor, "b ..."]) -> None:
        """The next samples, at time 0."""
        here = range(self.taken, self.taken + len(latents))
        self.images |= dict(zip(here, self.decode(latents), strict=True))
        self.taken += len(latents)
        for group in self.batch.group[here.start : here.stop].unique().tolist():
            rows = (self.batch.group == group).nonzero().flatten().tolist()
            if rows[-1] < self.taken:
                self.rows.append(rows)
                self.found.append(self.worker.submit(self._score, rows))

    def _score(self, rows: list[int]) -> Rewards:
        with torch.no_grad():
            images, prompts = (
                torch.stack([self.images.pop(i) for i in rows]),
                [self.prompts[i] for i in rows],
            )
            self.seen.append(self.look(images, self.batch.group[rows]))
            return replace(self.score(images, prompts), notes=())

    def scored(self) -> Scored:
        """All samples, in the order of the batch; raises what a scorer raised."""
        try:
            found = concatenate([future.result() for future in self.found])
        finally:
            self.worker.shutdown(cancel_futures=True)
        order = torch.tensor([i for rows in self.rows for i in rows]).argsort()
        ordered = map_tensors(found, lambda x: x[order.to(x.device)])
        return Scored(rewards=ordered, group=self.batch.group, sample=self.batch.sample)


@record
class Drawn:
    """Pictures of some samples."""

    images: Float[Tensor, "B 3 H W"]
    group: Int[Tensor, " B"]
    sample: Int[Tensor, " B"]


class Together:
    """As Scoring, but groups that several processes have drawn are scored whole, each by one of them, at the end."""

    def __init__(
        self,
        decode: Callable[[Tensor], Tensor],
        score: Scorer,
        look: Look,
        batch: Batch,
        ranks: Ranks,
    ) -> None:
        self.decode, self.score, self.batch, self.ranks = decode, score, batch, ranks
        self.look, self.seen = look, list[Metrics]()
        self.images: list[Tensor] = []

    def take(self, latents: Float[Tensor, "b ..."]) -> None:
        """The next samples, at time 0."""
        self.images.append(self.decode(latents))

    def scored(self) -> Scored | None:
        """The samples of the groups that fall to this process, if any do."""
        drawn = Drawn(
            images=torch.cat(self.images), group=self.batch.group, sample=self.batch.sample
        )
        owner = drawn.group % self.ranks.processes
        parts = [_rows(drawn, owner == rank) for rank in range(self.ranks.processes)]
        mine = self.ranks.all_to_all(parts, "exchange of pictures")
        mine = _rows(mine, mine.sample.argsort())
        found = [self._whole(_rows(mine, mine.group == group)) for group in mine.group.unique()]
        return concatenate(found) if found else None

    @torch.no_grad()
    def _whole(self, group: Drawn) -> Scored:
        prompts = [self.batch.prompts[g] for g in group.group.tolist()]
        self.seen.append(self.look(group.images, group.group))
        rewards = replace(self.score(group.images, prompts), notes=())
        return Scored(rewards=rewards, group=group.group, sample=group.sample)


def _rows(drawn: Drawn, rows: Tensor) -> Drawn:
    return map_tensors(drawn, lambda x: x[rows])
