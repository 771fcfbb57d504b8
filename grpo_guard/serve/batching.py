"""Score the requests of several clients together, in one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch
from jaxtyping import Float
from starlette.requests import ClientDisconnect
from torch import Tensor

from grpo_guard.reward import Scorer
from grpo_guard.schema import record
from grpo_guard.types import Prompt, Rewards


@record
class Job:
    """A request that waits to be scored."""

    images: Float[Tensor, "B 3 H W"]
    """Images in [0, 1]."""
    prompts: tuple[Prompt, ...]
    """Prompt of each image."""
    is_disconnected: Callable[[], Awaitable[bool]]
    """Returns whether the client has left, so that nobody waits for the scores."""
    result: asyncio.Future[Rewards]
    """The scores, or the error of the scorer."""


class Batcher:
    """Scores in one thread; requests that arrive meanwhile are scored together next.

    `size` is the largest number of images that are scored together, unless one request has more;
    0 scores every request on its own. `wait` is how many seconds a first request waits for others.
    """

    def __init__(self, score: Scorer, size: int, wait: float) -> None:
        self._score = score
        self._size = size
        self._wait = wait
        self._jobs: asyncio.Queue[Job] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1)

    async def submit(
        self,
        images: Float[Tensor, "B 3 H W"],
        prompts: tuple[Prompt, ...],
        is_disconnected: Callable[[], Awaitable[bool]],
    ) -> asyncio.Future[Rewards]:
        """Wait until a request is scored and return its future, which holds scores or an error."""
        result: asyncio.Future[Rewards] = asyncio.get_running_loop().create_future()
        self._jobs.put_nowait(
            Job(images=images, prompts=prompts, is_disconnected=is_disconnected, result=result)
        )
        # unlike `await result`, this does not raise the scorer's error, which may be any exception
        await asyncio.wait([result])
        return result

    async def run(self) -> None:
        """Score requests until cancelled."""
        while True:
            waiting = [await self._jobs.get()]
            await asyncio.sleep(self._wait)
            while not self._jobs.empty():
                waiting.append(self._jobs.get_nowait())
            for jobs in group_jobs(waiting, self._size):
                await self._score_together([job for job in jobs if not await _drop(job)])

    def close(self) -> None:
        """Wait for the batch that is being scored, and end the thread."""
        self._thread.shutdown()

    async def _score_together(self, jobs: Sequence[Job]) -> None:
        """Score jobs in one call; if that fails, score each alone so that only bad ones fail."""
        if not jobs:
            return
        outcome = asyncio.wrap_future(self._thread.submit(score_jobs, self._score, jobs))
        await asyncio.wait([outcome])
        error = outcome.exception()
        if error is None:
            for job, rewards in zip(jobs, outcome.result(), strict=True):
                job.result.set_result(rewards)
        elif len(jobs) == 1:
            jobs[0].result.set_exception(error)
        else:
            for job in jobs:
                await self._score_together([job])


def group_jobs(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """Group jobs whose images have the same shape and dtype, in order of arrival.

    A group has at most `size` images, unless it is one job with more.
    """
    groups_by_kind: dict[object, list[list[Job]]] = {}
    for job in jobs:
        groups = groups_by_kind.setdefault((job.images.shape[1:], job.images.dtype), [[]])
        images = sum(len(other.images) for other in groups[-1])
        if groups[-1] and images + len(job.images) > size:
            groups.append([])
        groups[-1].append(job)
    return [group for groups in groups_by_kind.values() for group in groups]


def score_jobs(score: Scorer, jobs: Sequence[Job]) -> list[Rewards]:
    """Return the scores of every job, from one call of the scorer."""
    images = torch.cat([job.images for job in jobs])
    prompts = [prompt for job in jobs for prompt in job.prompts]
    rewards = score(images, prompts)
    ends = [0]
    for job in jobs:
        ends.append(ends[-1] + len(job.images))
    return [
        Rewards(
            total=rewards.total[start:end],
            parts={name: part[start:end] for name, part in rewards.parts.items()},
            weights=rewards.weights,
            failed=rewards.failed[start:end],
            notes=rewards.notes[start:end],
        )
        for start, end in pairwise(ends)
    ]


async def _drop(job: Job) -> bool:
    """Return whether the client has left, in which case the job is not scored."""
    left = await job.is_disconnected()
    if left:
        job.result.set_exception(ClientDisconnect())
    return left
