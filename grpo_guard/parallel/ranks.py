"""The processes of a run, and what they exchange besides gradients and shards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from grpo_guard.metrics import Metric, Metrics, merge
from grpo_guard.schema import Rule, RunError, record
from grpo_guard.types import concatenate, map_tensors

R = TypeVar("R")
T = TypeVar("T")
Device = Annotated[
    str,
    Rule(
        lambda x: re.fullmatch(r"auto|(cpu|cuda)(:[0-9]{1,3})?", x) is not None,
        "is unknown",
        "choose auto, cpu, cuda or cuda:N",
    ),
]
"""Name of a device in the settings; auto: a GPU if there is one, else the CPU."""


@record
class _Box:
    """A record or a bare tensor in a wrapper, so that `map_tensors` and `concatenate` take both."""

    rows: Any
    """The record, the tensor, or None."""


@record
class Ranks:
    """One process's view of all processes of a run; a rank is a process's number.

    Every method is a collective: all processes must call it, in the same order, or the others wait
    in vain. A method first waits at a barrier and raises RunError, naming the missing ranks, if one
    does not arrive within `timeout`. The values are small (rewards, metrics, sample pictures); they
    travel through the host's memory by gloo.
    """

    device: torch.device
    """Where this process computes."""
    rank: int = 0
    """This process's number, from 0."""
    processes: int = 1
    """Number of processes; with 1, every method returns at once and exchanges nothing."""
    timeout: float = 0.0
    """Seconds to wait at a barrier."""
    group: Any = None
    """The process group of gloo by which the methods exchange; None: the default one."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the process that writes files and logs."""
        return self.rank == 0

    def barrier(self, where: str) -> None:
        """Wait until every process has arrived; `where` names the place in the error message.

        The other methods call it before they exchange anything; checkpoints call it before and
        after writing. Raises RunError, naming the ranks that are missing, after `timeout` seconds.
        """
        if self.processes == 1:
            return
        try:
            dist.monitored_barrier(
                self.group, timeout=timedelta(seconds=self.timeout), wait_all_ranks=True
            )
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise RunError(
                f"rank {self.rank} waited {self.timeout:.0f} s at the {where}: {reason}; look at"
                " the output of the ranks that it names, or raise strategy.timeout"
            ) from error

    def all_gather(self, value: T, where: str) -> list[T]:
        """Return every process's value, ordered by rank; the value is pickled.

        The evaluation gathers image scores by it. Raises RunError if a process does not arrive.
        """
        if self.processes == 1:
            return [value]
        self.barrier(where)
        values: list[Any] = [None] * self.processes
        dist.all_gather_object(values, value, self.group)
        return values

    def all_gather_rows(self, rows: R | None, where: str) -> R:
        """Concatenate the rows of all processes, ordered by rank, on this process's device.

        `rows` is a record of tensors or a tensor; a process without any passes None. The loop
        gathers scores and log-ratios by it, the evaluation its pictures. Raises RunError if a
        process does not arrive.
        """
        if self.processes == 1:
            assert rows is not None
            return rows
        boxes = self.all_gather(map_tensors(_Box(rows=rows), Tensor.cpu), where)
        whole: R = self._concatenate([box for box in boxes if box.rows is not None])
        return whole

    def all_to_all(self, parts: Sequence[R], where: str) -> R:
        """Send `parts[r]` to rank r; concatenate what all processes sent here, ordered by rank.

        A reward that compares the images of a prompt uses it to have each group on one process.
        Raises RunError if a process does not arrive.
        """
        boxes = [map_tensors(_Box(rows=part), Tensor.cpu) for part in parts]
        received: list[Any] = [None] * self.processes
        self.barrier(where)
        for receiver, box in enumerate(boxes):
            own = received if receiver == self.rank else None
            dist.gather_object(box, own, dst=receiver, group=self.group)
        whole: R = self._concatenate(received)
        return whole

    def _concatenate(self, boxes: Sequence[_Box]) -> Any:
        return map_tensors(concatenate(boxes), lambda x: x.to(self.device)).rows

    def reduce(self, metrics: Metrics) -> dict[str, Metric]:
        """Merge the metrics of all processes: sums and counts are added before anything is divided.

        Called once per iteration and once per evaluation. Raises RunError if a process does not
        arrive.
        """
        return merge(self.all_gather(metrics, "metrics"))

    def broadcast(self, value: T) -> T:
        """Return the first process's value on every process; the values of the others are ignored.

        A run starts with it, to agree on the output folder and on the state to resume from. Raises
        RunError if a process does not arrive.
        """
        return self.all_gather(value, "configuration")[0]

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any process.

        The loop decides with it, after each iteration, whether to stop. Raises RunError if a
        process does not arrive.
        """
        return any(self.all_gather(flag, "end of an iteration"))
