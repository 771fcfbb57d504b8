"""The processes of a run: what each may know of the others."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from grpo_guard.metrics import Metric, Metrics, merge
from grpo_guard.types import RunError, component, concatenate, map_tensors, record, require

R = TypeVar("R")
T = TypeVar("T")


@record
class _Box:
    rows: Any


@record
class Ranks:
    """Process `rank` of `processes`, computing on `device`. Every method is called by all of them, or by none.

    What they exchange is small (rewards, metrics, sample pictures) and goes through the host's memory.
    """

    device: torch.device
    rank: int = 0
    processes: int = 1
    timeout: float = 0.0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def barrier(self, where: str) -> None:
        """Wait for all; raises RunError, naming who is missing, where they do not come in time."""
        if self.processes == 1:
            return
        try:
            dist.monitored_barrier(timeout=timedelta(seconds=self.timeout), wait_all_ranks=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise RunError(
                f"rank {self.rank} waited {self.timeout:.0f} s at the {where}: {reason}"
            ) from error

    def all_gather(self, value: T, where: str) -> list[T]:
        """The values of all processes, by rank."""
        if self.processes == 1:
            return [value]
        self.barrier(where)
        found: list[Any] = [None] * self.processes
        dist.all_gather_object(found, value)
        return found

    def all_gather_rows(self, rows: R | None, where: str) -> R:
        """The rows of all processes that have any, rank by rank: of a record or, alone, of a tensor."""
        if self.processes == 1:
            assert rows is not None
            return rows
        boxes = self.all_gather(map_tensors(_Box(rows=rows), Tensor.cpu), where)
        whole: R = self._joined([box for box in boxes if box.rows is not None])
        return whole

    def all_to_all(self, parts: Sequence[R], where: str) -> R:
        """The rows that all processes have for this one, rank by rank; each gives a part for every process."""
        boxes = [map_tensors(_Box(rows=part), Tensor.cpu) for part in parts]
        found: list[Any] = [None] * self.processes
        self.barrier(where)
        for owner, box in enumerate(boxes):
            dist.gather_object(box, found if owner == self.rank else None, dst=owner)
        whole: R = self._joined(found)
        return whole

    def _joined(self, boxes: Sequence[_Box]) -> Any:
        return map_tensors(concatenate(boxes), lambda x: x.to(self.device)).rows

    def reduce(self, metrics: Metrics) -> dict[str, Metric]:
        """The metrics of all processes added up."""
        return merge(self.all_gather(metrics, "metrics"))

    def broadcast(self, value: T) -> T:
        """What the first process says."""
        return self.all_gather(value, "configuration")[0]

    def any(self, flag: bool) -> bool:
        """Whether it is true of any."""
        return any(self.all_gather(flag, "end of an iteration"))


def single_process(device: torch.device) -> Ranks:
    """A run of one process."""
    return Ranks(device=device)


def world_size() -> int | None:
    """How many processes torchrun has started; None without it."""
    return int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ else None


@component
class LaunchedStrategy:
    """`processes` under torchrun, each with `threads` CPU threads (null: torch's choice).

    One that is missing for `timeout` seconds where all must meet stops the run.
    """

    processes: int
    timeout: float
    threads: int | None

    def __post_init__(self) -> None:
        require(self.processes > 0, f"processes={self.processes} is not positive")
        require(self.timeout > 0, f"timeout={self.timeout} is not positive; give seconds")
        started = world_size()
        require(
            started is None or started == self.processes,
            f"processes={self.processes}, but torchrun started {started}; leave strategy.processes out",
        )

    def start(self) -> Ranks:
        """Meet the others."""
        return join_process_group(self.processes, self.timeout, self.threads)


def join_process_group(processes: int, timeout: float, threads: int | None) -> Ranks:
    """Meet the processes that torchrun has started, each on a GPU of its own or on the CPU."""
    require(
        world_size() is not None,
        f"processes={processes} is for scripts/train.py, or torchrun --nproc-per-node {processes}; use strategy=single",
    )
    if threads is not None:
        torch.set_num_threads(threads)
    device = local_device(os.environ)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        atexit.register(leave_process_group)
    return Ranks(
        device=device, rank=dist.get_rank(), processes=dist.get_world_size(), timeout=timeout
    )


def local_device(environment: Mapping[str, str]) -> torch.device:
    """The GPU of the local rank; the CPU where there are none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(environment["LOCAL_RANK"])
    require(
        local < torch.cuda.device_count(),
        f"LOCAL_RANK={local}, but this machine has {torch.cuda.device_count()} GPUs; lower --nproc-per-node",
    )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def leave_process_group() -> None:
    """Take the process group down, if it still stands."""
    if dist.is_initialized():
        dist.destroy_process_group()
