"""The first and the last lines of a run on standard error."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from grpo_guard.console.launch import is_launched
from grpo_guard.console.multirun import describe_job, is_multirun

SCRIPTS = {"serve": "serve_reward", "calibrate": "calibrate_geneval"}
"""The files in scripts/ that are not named like their commands."""


def announce() -> None:
    """Print at once that something happens: importing torch alone takes seconds."""
    if is_launched() or os.environ.get("RANK", "0") != "0":
        return
    job = describe_job()
    print(*([job] if job else []), "loading ...", sep="\n", file=sys.stderr, flush=True)


def describe_end(folder: Path) -> str:
    """Return three lines: the run folder, its newest checkpoint, and what to do next."""
    checkpoints = sorted(p for p in folder.glob("checkpoints/*") if p.name.isdigit())
    # A run that was resumed has several, and W&B takes no iteration before the last that it has.
    offline = [p for p in sorted(folder.glob("wandb/offline-run-*")) if not any(p.glob("*.synced"))]
    name = "compare" if is_multirun() else "sample"
    commands = [f"{command(name)} {shlex.quote(str(folder))}"]
    if offline:
        commands.append(shlex.join(["wandb", "sync", *map(str, offline)]))
    return "\n".join(
        [
            f"run         {folder}",
            f"checkpoint  {checkpoints[-1] if checkpoints else 'none'}",
            f"next        {'; '.join(commands)}",
        ]
    )


def command(name: str) -> str:
    """Return the beginning of a command, in the way in which this one was started."""
    if sys.argv[0].startswith("grpo-guard"):
        return f"grpo-guard {name}"
    return f"python scripts/{SCRIPTS.get(name, name)}.py"
