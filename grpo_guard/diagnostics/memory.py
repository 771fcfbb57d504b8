"""The memory of the device that a run computes on: its peak, and what to do if it is too small."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from grpo_guard.schema import RunError
from grpo_guard.shortage import is_shortage

GIB = 2**30
REMEDIES: Mapping[str, str] = {
    "loading the model": "give backbone.prompt_cache a folder, choose a smaller backbone.dtype, or"
    " share the model by strategy=fsdp",
    "loading the reward": "choose a smaller dtype of the reward, or serve it from another device"
    " (reward=remote)",
    "encoding prompts": "choose a smaller backbone.text_dtype, or give backbone.prompt_cache a"
    " folder",
    "preparing the evaluation": "choose a smaller backbone.text_dtype, give backbone.prompt_cache a"
    " folder, or set eval.keep_gold=false or eval.kl=false",
    "evaluation": "lower eval.microbatch or eval.prompts, or set eval.keep_gold=false",
    "rollout": "lower microbatch or backbone.microbatch",
    "drawing": "choose another --device, such as cpu",
    "loading a reward of --rewards": "choose --device=cpu, or give fewer --rewards at a time",
    "scoring": "choose --device=cpu, lower the reward's microbatch, or give a lower --count",
    "reward": "lower the reward's microbatch, or set asynchronous=false",
    "update": "lower microbatch, or set backbone.gradient_checkpointing=true",
}
"""What to change if the memory does not suffice, by phase of a run."""
_STATUS = Path("/proc/self/status")
_CLEAR_PEAK = "5"
"""What makes Linux forget a process's peak, written to clear_refs; see proc_pid_clear_refs(5)."""


def reset_peak(device: torch.device) -> None:
    """Forget the peak until now.

    On the CPU, only Linux can do that; elsewhere the peak remains that of the whole process.
    """
    if device.type != "cpu":
        _memory_of(device).reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK, encoding="ascii")


def peak_bytes(device: torch.device) -> int:
    """Return the most bytes held since `reset_peak`: by tensors on a GPU, else by the process."""
    if device.type != "cpu":
        return int(_memory_of(device).max_memory_allocated(device))
    return _read_status("VmHWM", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def held_bytes(device: torch.device) -> int:
    """Return the bytes held now: by tensors on a GPU, else by the process."""
    if device.type != "cpu":
        return int(_memory_of(device).memory_allocated(device))
    return _read_status("VmRSS", peak_bytes(device))


def free_cache(device: torch.device) -> None:
    """Return what a GPU's allocator keeps for later to the device."""
    if device.type != "cpu":
        _memory_of(device).empty_cache()


@contextmanager
def explain_shortage(device: torch.device, phase: str) -> Iterator[None]:
    """Raise RunError with the phase, what was held and a remedy if the memory does not suffice.

    `phase` is a key of REMEDIES.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        raise RunError(
            f"{device} is out of memory in the phase {phase}: {held_bytes(device) / GIB:.2f} GiB"
            f" were held{_describe_wanted(error)}; {REMEDIES[phase]}"
        ) from error


def _describe_wanted(error: BaseException) -> str:
    """Return how much more was asked for, if the allocator's message says so."""
    gpu = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
    if gpu:
        return f" and {gpu[1]} more did not fit"
    host = re.search(r"allocate (\d+) bytes", str(error))
    return f" and {int(host[1]) / GIB:.2f} GiB more did not fit" if host else ""


def _memory_of(device: torch.device) -> Any:
    """Return the module of torch that counts a device's memory, such as torch.cuda."""
    return torch.get_device_module(device)


def _read_status(field: str, otherwise: int) -> int:
    """Return a size of this process from Linux's /proc, in bytes; `otherwise` elsewhere."""
    with suppress(OSError):
        match = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.M)
        if match:
            return int(match[1]) * 1024
    return otherwise
