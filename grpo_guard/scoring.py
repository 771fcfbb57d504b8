"""Decoding and scoring the samples of a rollout while others are being drawn."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.reward import Scorer
from grpo_guard.types import Batch, Rewards, each, stack


class Immediately(Executor):
    """Does at once what it is given."""

    def submit(self, fn: Callable[..., Rewards], /, *args: object, **kwargs: object) -> Future[Rewards]:  # type: ignore[override]
        """The finished call."""
        done: Future[Rewards] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class Scoring:
    """Takes the latents of a batch in order, a few samples at a time, and scores every group as soon as it is whole.

    Groups are scored one by one, by a thread where `asynchronous`, so that rewards see the same images together
    whether they wait for the rollout or not, and are the same. Their notes are not kept.
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], score: Scorer, batch: Batch, *, asynchronous: bool) -> None:
        self.decode, self.score, self.batch, self.prompts = decode, score, batch, batch.each()
        self.worker: Executor = ThreadPoolExecutor(1) if asynchronous else Immediately()
        self.images, self.taken = dict[int, Tensor](), 0
        self.rows, self.scored = list[list[int]](), list[Future[Rewards]]()

    def take(self, latents: Float[Tensor, "b ..."]) -> None:
        """The next samples, at time 0."""
        here = range(self.taken, self.taken + len(latents))
        self.images |= dict(zip(here, self.decode(latents), strict=True))
        self.taken += len(latents)
        for group in self.batch.group[here.start : here.stop].unique().tolist():
            rows = (self.batch.group == group).nonzero().flatten().tolist()
            if rows[-1] < self.taken:
                self.rows.append(rows)
                self.scored.append(self.worker.submit(self._score, rows))

    def _score(self, rows: list[int]) -> Rewards:
        with torch.no_grad():
            images, prompts = torch.stack([self.images.pop(i) for i in rows]), [self.prompts[i] for i in rows]
            return replace(self.score(images, prompts), notes=())

    def rewards(self) -> Rewards:
        """Of all samples, in the order of the batch; raises what a scorer raised."""
        try:
            found = stack([future.result() for future in self.scored])
        finally:
            self.worker.shutdown(cancel_futures=True)
        order = torch.tensor([i for rows in self.rows for i in rows]).argsort()
        return each(found, lambda x: x[order.to(x.device)])
