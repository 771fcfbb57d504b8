"""Scoring a batch while it is drawn: decode latents, watch the pictures, call the reward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.metrics import Metrics, merge
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.reward import Scorer
from grpo_guard.schema import record
from grpo_guard.types import Batch, Rewards, concatenate, map_tensors
from grpo_guard.watch import Observe

Decode = Callable[[Float[Tensor, "b ..."]], Float[Tensor, "b 3 H W"]]
"""Latents at time 0 -> images in [0, 1]."""


@record
class ScoredSamples:
    """Samples and their rewards; notes are not kept."""

    rewards: Rewards
    """One row per sample."""
    group: Int[Tensor, " B"]
    """Group of each sample."""
    sample: Int[Tensor, " B"]
    """Number of each sample in the iteration."""


@runtime_checkable
class BatchScorer(Protocol):
    """Scores the samples of one process as the rollout hands them over."""

    def take(self, latents: Float[Tensor, "b ..."]) -> None:
        """Take the next samples of the batch, at time 0."""

    def finish(self) -> tuple[ScoredSamples | None, Metrics]:
        """Return the samples that this process scored, and what `watch` measured of them.

        None means that this process scored no sample. Raises what a reward raised.
        """

    def cancel(self) -> None:
        """Score nothing that is not being scored yet, and wait for what is."""


@final
class StreamingScorer:
    """Scores each group as soon as all of its samples are drawn.

    Groups are scored one by one, so that a reward sees the same images together whether scoring
    runs in a thread beside the rollout (`asynchronous`) or waits for it: the results are equal.
    """

    def __init__(
        self,
        decode: Decode,
        score: Scorer,
        observe: Observe,
        batch: Batch,
        *,
        asynchronous: bool,
    ) -> None:
        self.decode = decode
        self.score = score
        self.observe = observe
        self.batch = batch
        self.prompts = batch.prompts_by_sample()
        self.groups = _rows_by_group(batch)
        self.executor: Executor = ThreadPoolExecutor(1) if asynchronous else _Inline()
        self.images = dict[int, Tensor]()
        self.taken = 0
        self.rows = list[Sequence[int]]()
        self.futures = list[Future[tuple[Rewards, Metrics]]]()

    def take(self, latents: Float[Tensor, "b ..."]) -> None:
        """Take the next samples of the batch, at time 0."""
        arrived = range(self.taken, self.taken + len(latents))
        self.images |= dict(zip(arrived, self.decode(latents), strict=True))
        self.taken += len(latents)
        for rows in self.groups:
            if rows[-1] in arrived:
                self.rows.append(rows)
                self.futures.append(self.executor.submit(self._score_group, rows))

    @torch.no_grad()
    def _score_group(self, rows: Sequence[int]) -> tuple[Rewards, Metrics]:
        images = torch.stack([self.images.pop(i) for i in rows])
        watched = self.observe(images, self.batch.group[rows])
        rewards = self.score(images, [self.prompts[i] for i in rows])
        return replace(rewards, notes=()), watched

    def finish(self) -> tuple[ScoredSamples, Metrics]:
        """Return all samples in the order of the batch."""
        try:
            results = [future.result() for future in self.futures]
        finally:
            self.cancel()
        rewards = concatenate([rewards for rewards, _ in results])
        order = torch.tensor([i for rows in self.rows for i in rows]).argsort()
        rewards = map_tensors(rewards, lambda x: x[order.to(x.device)])
        scored = ScoredSamples(rewards=rewards, group=self.batch.group, sample=self.batch.sample)
        return scored, merge(watched for _, watched in results)

    def cancel(self) -> None:
        """Score nothing that is not being scored yet, and wait for what is."""
        self.executor.shutdown(cancel_futures=True)


@contextmanager
def cancel_on_error(scorer: BatchScorer) -> Iterator[None]:
    """Cancel what a scorer has yet to score if what hands it samples fails or is interrupted."""
    try:
        yield
    except BaseException:
        scorer.cancel()
        raise


def _rows_by_group(batch: Batch) -> list[list[int]]:
    """Return the rows of every group of a batch, by the number of the group."""
    rows: dict[int, list[int]] = {}
    for row, group in enumerate(batch.group.tolist()):
        rows.setdefault(group, []).append(row)
    return [rows[group] for group in sorted(rows)]


class _Inline(Executor):
    """An executor that runs each call at once, in the calling thread."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run the call and return its finished future."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@record
class DrawnImages:
    """Images of some samples."""

    images: Float[Tensor, "B 3 H W"]
    """Images in [0, 1]."""
    group: Int[Tensor, " B"]
    """Group of each sample."""
    sample: Int[Tensor, " B"]
    """Number of each sample in the iteration."""


@final
class WholeGroupScorer:
    """Scores groups that several processes draw together, for rewards that compare pictures.

    The processes exchange their images after the rollout; each group is scored by one process.
    """

    def __init__(
        self, decode: Decode, score: Scorer, observe: Observe, batch: Batch, ranks: Ranks
    ) -> None:
        self.decode = decode
        self.score = score
        self.observe = observe
        self.batch = batch
        self.ranks = ranks
        self.images: list[Tensor] = []

    def take(self, latents: Float[Tensor, "b ..."]) -> None:
        """Take the next samples of the batch, at time 0."""
        self.images.append(self.decode(latents))

    def cancel(self) -> None:
        """Do nothing: scoring begins at the end."""

    def finish(self) -> tuple[ScoredSamples | None, Metrics]:
        """Return the samples of the groups that belong to this process."""
        images = torch.cat(self.images)
        drawn = DrawnImages(images=images, group=self.batch.group, sample=self.batch.sample)
        owner = drawn.group % self.ranks.processes
        parts = [_select(drawn, owner == rank) for rank in range(self.ranks.processes)]
        own = self.ranks.all_to_all(parts, "exchange of pictures")
        own = _select(own, own.sample.argsort())
        results = [self._score_group(_select(own, own.group == g)) for g in own.group.unique()]
        if not results:
            return None, {}
        return concatenate([s for s, _ in results]), merge(watched for _, watched in results)

    @torch.no_grad()
    def _score_group(self, group: DrawnImages) -> tuple[ScoredSamples, Metrics]:
        watched = self.observe(group.images, group.group)
        rewards = self.score(group.images, [self.batch.prompts[g] for g in group.group.tolist()])
        scored = ScoredSamples(
            rewards=replace(rewards, notes=()), group=group.group, sample=group.sample
        )
        return scored, watched


def gather_scores(scored: ScoredSamples | None, ranks: Ranks) -> ScoredSamples:
    """Return the samples of all processes, in the order of their numbers, on the CPU.

    Few numbers decide much from here on, and on a GPU each would be waited for.
    """
    whole = ranks.all_gather_rows(scored, "reward")
    whole = map_tensors(whole, Tensor.cpu)
    order = whole.sample.argsort()
    return map_tensors(whole, lambda x: x[order])


def _select(drawn: DrawnImages, rows: Tensor) -> DrawnImages:
    return map_tensors(drawn, lambda x: x[rows])
