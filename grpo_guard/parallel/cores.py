"""The CPU cores that this process may use, which can be fewer than the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux mounts the control groups, by which containers and schedulers limit processes."""
MEMBERSHIP = Path("/proc/self/cgroup")
"""The control groups of this process."""


def granted_cores() -> int:
    """Return the cores that this process may use, at least 1.

    Its affinity (taskset, a scheduler's binding) counts, and so do the quotas of its control groups
    (a container's limit), rounded down.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, int(min([cores or 1, *_read_quotas()])))


def cores_per_process() -> int:
    """Return the granted cores divided by the processes of this run on this machine, at least 1."""
    return max(1, granted_cores() // _count_local_processes())


def _count_local_processes() -> int:
    """Return the processes that the launcher has started on this machine, 1 if it does not say."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(text)) if text.isdecimal() else 1


def _read_quotas() -> Iterator[float]:
    """Yield the quota, in cores, of every control group around this process that has one."""
    with suppress(OSError):
        for line in MEMBERSHIP.read_text(encoding="utf-8").splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers == "" or "cpu" in controllers.split(","):
                yield from _read_group(CGROUPS / controllers, place)


def _read_group(root: Path, place: str) -> Iterator[float]:
    """Yield the quotas of a control group and of those around it."""
    group = root / place.lstrip("/")
    while True:
        # cpu.max is that of version 2, the other two are those of version 1.
        yield from _read_quota(group, "cpu.max")
        yield from _read_quota(group, "cpu.cfs_quota_us", "cpu.cfs_period_us")
        if group == root:
            return
        group = group.parent


def _read_quota(group: Path, *names: str) -> Iterator[float]:
    """Yield a quota from the files that hold it and its period; nothing if there is none."""
    with suppress(OSError, ValueError):
        words = [(group / name).read_text(encoding="ascii") for name in names]
        quota, period = " ".join(words).split()
        if int(quota) > 0:
            yield int(quota) / int(period)
