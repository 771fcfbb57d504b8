"""The base of the strategies with several processes: their shared settings, and how they meet."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

from grpo_guard.parallel.ranks import Ranks
from grpo_guard.schema import component, require


@component
class LaunchedStrategy:
    """Several processes, started by torchrun or, on one machine, by scripts/train.py."""

    processes: int
    """Number of processes on all machines. Leave it out under torchrun, which knows it."""
    timeout: float
    """Seconds to wait for the other processes before the run stops and names the missing ones."""
    threads: int | None
    """CPU threads of each process; null leaves the number to PyTorch."""

    def __post_init__(self) -> None:
        require(self.processes > 0, f"processes={self.processes} is not positive; give 1 or more")
        require(self.timeout > 0, f"timeout={self.timeout} is not positive; give seconds")
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
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        device = local_device(os.environ)
        if not dist.is_initialized():
            # gloo on GPUs too: Ranks exchanges host memory, and only gloo has monitored barriers.
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(seconds=self.timeout))
            atexit.register(_leave_process_group)
        return Ranks(
            device=device,
            rank=dist.get_rank(),
            processes=dist.get_world_size(),
            timeout=self.timeout,
        )


def world_size() -> int | None:
    """Return how many processes torchrun has started; None without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ else None


def local_device(environment: Mapping[str, str]) -> torch.device:
    """Return the GPU of LOCAL_RANK, made current, or the CPU on a machine without GPUs.

    Raises ConfigError if this machine has more processes than GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(environment["LOCAL_RANK"])
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
