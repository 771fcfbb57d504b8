"""The base of the strategies with several processes: their shared settings, and how they meet."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import Annotated, Any

import torch
import torch.distributed as dist

from grpo_guard.parallel.kernels import choose_kernels
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.schema import (
    Advice,
    AtMost,
    Positive,
    PositiveInt,
    RunError,
    component,
    require,
)

VARIABLES = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables of the environment by which processes meet; torchrun sets them."""


@component
class LaunchedStrategy:
    """Several processes, started by torchrun or, on one machine, by scripts/train.py."""

    processes: Annotated[PositiveInt, AtMost(65_536)]
    """Number of processes on all machines. Leave it out under torchrun, which knows it."""
    timeout: Annotated[Positive, Advice("give seconds")]
    """Seconds to wait for the other processes before the run stops and names the missing ones."""
    threads: Annotated[PositiveInt | None, AtMost(1024), Advice("null leaves it to PyTorch")]
    """CPU threads of each process; null leaves the number to PyTorch."""
    deterministic: bool = False
    """True: on a GPU, use only kernels that give the same numbers every time, where torch has them.

    That is slower. Without it, a repeated or resumed run agrees to rounding only; on the CPU it is
    the same in any case.
    """

    def __post_init__(self) -> None:
        started = world_size()
        require(
            started is None or started == self.processes,
            f"processes={self.processes}, but torchrun started {started};"
            " leave strategy.processes out",
        )

    def start(self) -> Ranks:
        """Take this process's device and join the others.

        Raises ConfigError if the processes have not been started.
        """
        require(
            world_size() is not None,
            f"processes={self.processes} is for scripts/train.py, or torchrun --nproc-per-node"
            f" {self.processes}; use strategy=single",
        )
        check_environment(os.environ)
        set_threads(self.threads)
        choose_kernels(self.deterministic)
        device = local_device(os.environ)
        if not dist.is_initialized():
            _join("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", self.timeout)
            atexit.register(_leave_process_group)
        return Ranks(
            device=device,
            rank=dist.get_rank(),
            processes=dist.get_world_size(),
            timeout=self.timeout,
            group=_host_group(dist.group.WORLD, self.timeout),
        )


@cache
def _host_group(world: object, timeout: float) -> Any:
    """Make the group by which Ranks exchanges host memory, once for a process group `world`.

    It is of gloo alone: torch 2.8 allows monitored barriers on nothing else, not even on the gloo
    half of "cpu:gloo,cuda:nccl".
    """
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))


_threads_before: list[int] = []
"""Torch's threads before a run of this process chose others."""


def set_threads(threads: int | None) -> None:
    """Let torch compute with so many threads; None: with as many as before any run chose some."""
    if threads is None:
        if _threads_before:
            torch.set_num_threads(_threads_before.pop())
        return
    if not _threads_before:
        _threads_before.append(torch.get_num_threads())
    torch.set_num_threads(threads)


def world_size() -> int | None:
    """Return how many processes torchrun has started; None without torchrun.

    Raises ConfigError if the environment has something else than a number for it.
    """
    if "WORLD_SIZE" not in os.environ:
        return None
    return _read_number(os.environ, "WORLD_SIZE", first=1)


def check_environment(environment: Mapping[str, str]) -> None:
    """Raise ConfigError unless the environment is one in which processes can meet."""
    missing = [name for name in VARIABLES if not environment.get(name)]
    require(
        not missing,
        f"{', '.join(missing)} must be in the environment of each process; start them with"
        " torchrun, or unset WORLD_SIZE and let scripts/train.py start them",
    )
    _read_number(environment, "MASTER_PORT", first=1)
    rank = _read_number(environment, "RANK", first=0)
    size = _read_number(environment, "WORLD_SIZE", first=1)
    require(
        rank < size,
        f"RANK={rank} is not below WORLD_SIZE={size} in the environment; start the processes with"
        " torchrun",
    )


def _read_number(environment: Mapping[str, str], name: str, first: int) -> int:
    """Return a variable of the environment as a number from `first` on."""
    text = environment.get(name, "")
    require(
        text.isdecimal() and int(text) >= first,
        f"{name}={text} in the environment is not a number from {first} on; start the processes"
        f" with torchrun, or unset {name}",
    )
    return int(text)


def _join(backend: str, timeout: float) -> None:
    """Meet the other processes; raises RunError if they do not come."""
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"RANK={os.environ['RANK']} cannot meet the other processes at"
            f" {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({reason}); check that all"
            " are started, with the same address"
        ) from error


def local_device(environment: Mapping[str, str]) -> torch.device:
    """Return the GPU of LOCAL_RANK, made current, or the CPU on a machine without GPUs.

    Raises ConfigError if this machine has more processes than GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = _read_number(environment, "LOCAL_RANK", first=0)
    require(
        local < torch.cuda.device_count(),
        f"LOCAL_RANK={local}, but this machine has {torch.cuda.device_count()} GPUs;"
        " lower --nproc-per-node",
    )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _leave_process_group() -> None:
    """Destroy the process group, unless that has been done."""
    if dist.is_initialized():
        dist.destroy_process_group()
