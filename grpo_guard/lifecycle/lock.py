"""One process writes a run folder: a file there names it while it lives."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from grpo_guard.schema import require

LOCK = "lock"
"""Name of the file in a run folder that says which process of which host and job writes it."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""What a file system without flock answers."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process, until the context exits.

    The lock of a process of this machine that has died is taken over, and so is that of an earlier
    start of the same SLURM job. Raises ConfigError if a process that lives, or one of another
    machine, holds the folder; OSError if it cannot be written.
    """
    file = folder / LOCK
    me = _describe_process()
    _take(folder, me)
    try:
        yield
    finally:
        # Somebody may have removed the file by hand, and another process may hold the folder now.
        with suppress(OSError):
            if _parse(file.read_text(encoding="utf-8")) == me:
                file.unlink()


def _describe_process() -> dict[str, Any]:
    """Return what the lock says of this process; `job` is empty outside of SLURM."""
    number = os.getpid()
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        job = f"{os.environ.get('SLURM_ARRAY_JOB_ID')}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return {
        "host": socket.gethostname(),
        "process": number,
        "started": _start_time(number),
        "job": job,
        "restarts": os.environ.get("SLURM_RESTART_COUNT", "0"),
    }


def _take(folder: Path, me: dict[str, Any]) -> None:
    file = folder / LOCK
    while True:
        with file.open("a+", encoding="utf-8") as stream:
            _wait_for_turn(stream.fileno())
            if not _is_at(stream.fileno(), file):
                continue  # another process removed the file after this one had opened it
            stream.seek(0)
            _check_free(_parse(stream.read()), me, folder)
            stream.truncate(0)
            stream.write(json.dumps(me))
            return


def _wait_for_turn(descriptor: int) -> None:
    """Let one process at a time read the file and write its name; closing it ends the turn."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _is_at(descriptor: int, file: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), file.stat())
    return False


def _parse(text: str) -> dict[str, Any]:
    """Return who holds a folder; nobody if a process was killed while it wrote its name."""
    with suppress(ValueError):
        holder = json.loads(text)
        if isinstance(holder, dict) and isinstance(holder.get("process"), int):
            return {"host": "", "started": "", "job": "", "restarts": "0", **holder}
    return {}


def _check_free(holder: dict[str, Any], me: dict[str, Any], folder: Path) -> None:
    """Raise ConfigError if another process holds the folder, or may hold it."""
    if not holder or _is_earlier_start(holder, me):
        return
    process = holder["process"]
    require(
        holder["host"] == me["host"],
        f"output={folder} is held by process {process} on {holder['host']}, which cannot be checked"
        f" from here; if it has ended, remove {folder / LOCK}, else choose another folder",
    )
    # A process number is used again, so the time at which the process started is compared too.
    started = _start_time(process)
    require(
        not started or started != holder["started"],
        f"output={folder} is being written by process {process}; wait until it ends, or choose"
        " another folder",
    )


def _is_earlier_start(holder: dict[str, Any], me: dict[str, Any]) -> bool:
    """Return whether the holder is of this process's SLURM job, before SLURM queued it again.

    SLURM ends a job before it starts it again. Steps of one start may run side by side.
    """
    is_same_job: bool = me["job"] != "" and me["job"] == holder["job"]
    return is_same_job and bool(me["restarts"] != holder["restarts"])


def _start_time(process: int) -> str:
    """Return when a process of this machine started, in ticks of its clock; "" if it is dead.

    A system without /proc does not tell; the result is then "unknown" for a process that lives.
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass  # it lives and belongs to another user
    try:
        line = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    # The second field is the name of the program, in brackets, and may hold anything. After it come
    # the state (third field), and later the start (22nd).
    fields = line.rpartition(")")[2].split()
    return "" if fields[0] in ("Z", "X") else fields[19]
