"""Runs the checks of a new GPU and keeps what they show: `bench.py gpu`."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.table import Table

from grpo_guard.command.benches.gpu_plan import Check
from grpo_guard.schema import record, require

STOPPED = 124
"""Exit code of a check whose time was over, as `timeout` gives it."""
KEPT_LINES = 200
"""Last lines of a check's output that its row keeps. The longest tables follow their answer."""
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "COLUMNS": "120"}
"""Variables for a check. What it printed is kept if it is killed, and tables are not folded."""
NAME_GPU = "import torch; print(torch.cuda.get_device_name())"
"""Code for another process: a process that has asked may keep a part of the GPU for itself."""


@record
class Outcome:
    """What a check showed."""

    name: str
    """Name of the check."""
    device: str
    """Name of the GPU."""
    command: str
    """What was run."""
    code: int
    """Its exit code; `STOPPED` if its time was over."""
    seconds: float
    """How long it ran."""
    tail: tuple[str, ...]
    """The last lines of its output."""


Run = Callable[[Check, float, Path], int]
"""Runs a check with a limit in seconds and an output file, and returns its exit code."""


def run_plan(
    checks: Sequence[Check], folder: Path, minutes: float, device: str, run: Run
) -> list[Outcome]:
    """Run the checks that are not done yet, as long as there is time; write each as it ends.

    `folder` gets figures.jsonl with one outcome per line, and NAME.log with the whole output of
    each check. A check that was stopped, that failed, or that was done on another `device` is run
    again when the plan is started anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record_file = folder / "figures.jsonl"
    before = read_outcomes(record_file)
    done = {o.name: o for o in before if o.code == 0 and o.device == device}
    deadline = time.monotonic() + 60 * minutes
    for check in checks:
        left = deadline - time.monotonic()
        if check.name in done or left <= 0:
            continue
        outcome = _run_check(check, folder, min(left, 60 * check.minutes), device, run)
        with record_file.open("a", encoding="utf-8") as file:
            # The line before may be torn: it then has no end.
            file.write("\n" + json.dumps(vars(outcome)))
        done[check.name] = outcome
        print(f"{check.name}: {_describe(outcome)}", flush=True)
    return [done[check.name] for check in checks if check.name in done]


def _run_check(check: Check, folder: Path, seconds: float, device: str, run: Run) -> Outcome:
    log = folder / f"{check.name}.log"
    start = time.monotonic()
    code = run(check, seconds, log)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return Outcome(
        name=check.name,
        device=device,
        command=shlex.join(make_command(check)[1:]),
        code=code,
        seconds=round(time.monotonic() - start, 1),
        tail=tuple(lines[-KEPT_LINES:]),
    )


def read_outcomes(path: Path) -> list[Outcome]:
    """Return the outcomes that a plan has written; none if it was not started.

    A line that was torn when the plan was killed, or that another version of this program wrote, is
    left out: its check counts as not done.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    outcomes = []
    for line in lines:
        with suppress(json.JSONDecodeError, KeyError, TypeError):
            row = json.loads(line)
            outcomes.append(Outcome(**(row | {"tail": tuple(row["tail"])})))
    return outcomes


def make_command(check: Check) -> list[str]:
    """Return a check's command line, which begins with this Python."""
    return [sys.executable, "-m", check.module, *check.words]


def run_command(check: Check, seconds: float, log: Path) -> int:
    """Run a check's command, and kill it and its processes when its time is over.

    Returns its exit code, or `STOPPED`.
    """
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            make_command(check),
            stdout=file,
            stderr=file,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,
        )
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return STOPPED
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def make_table(checks: Sequence[Check], outcomes: Sequence[Outcome]) -> Table:
    """Show every check with its outcome."""
    by_name = {outcome.name: outcome for outcome in outcomes}
    table = Table("check", "question", "outcome")
    for check in checks:
        table.add_row(check.name, check.question, _describe(by_name.get(check.name)))
    return table


def _describe(outcome: Outcome | None) -> str:
    if outcome is None:
        return "no time left"
    ends = {0: "done", STOPPED: "stopped"}
    end = f"{ends.get(outcome.code, f'failed, code {outcome.code}')}, {outcome.seconds:.0f} s"
    failed = outcome.code not in ends
    return f"{end}: {outcome.tail[-1]}" if failed and outcome.tail else end


def require_gpu() -> str:
    """Return the name of the GPU; raises ConfigError where there is none."""
    import torch

    require(torch.cuda.is_available(), "no GPU is here; run bench.py gpu on a machine with one")
    named = subprocess.run([sys.executable, "-c", NAME_GPU], capture_output=True, text=True)
    lines = (named.stdout if named.returncode == 0 else named.stderr).strip().splitlines()
    last = lines[-1] if lines else ""
    fault = f"the GPU cannot be used ({last}); see whether nvidia-smi lists it"
    require(named.returncode == 0, fault)
    return last
