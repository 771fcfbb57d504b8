"""The jobs of a multirun: their names, and the list of those that failed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from grpo_guard.console.errors import explain_failure
from grpo_guard.console.overrides import hide_secret
from grpo_guard.console.streams import lasting_streams
from grpo_guard.experiment import IMMATERIAL

UNNAMED = {"sweeps", *IMMATERIAL}
"""Keys of overrides that are not part of a job's name."""
LONGEST_NAME = 200
"""Maximum length of a job's name; file systems allow 255 characters in the name of a folder."""


def is_multirun() -> bool:
    """Return whether this process runs a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def job_number() -> str:
    """Return "_3" for the job number 3 of a multirun, and "" for a single run."""
    return f"_{HydraConfig.get().job.num}" if is_multirun() else ""


def job_name() -> str:
    """Return the overrides of a job as the name of a folder.

    For example "clipping=guard_seed=0", or "base" without overrides. The order of the overrides
    does not matter, so that the same command finds the same folder again.
    """
    overrides = sorted(override.lstrip("+~") for override in HydraConfig.get().overrides.task)
    text = "_".join(o for o in overrides if re.split(r"[./@=]", o)[0] not in UNNAMED)
    name = re.sub(r"[^\w.=+-]+", "-", text).strip("-") or "base"
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name[:LONGEST_NAME]}_{digest}"


def quotient(whole: int, part: int) -> int:
    """Divide two settings: one setting can then balance another one that a sweep changes."""
    return whole // part


for resolver in (job_number, job_name, quotient):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


class Failures(Callback):
    """Records each job that fails in the folder of its multirun, and lets the other jobs run."""

    @lasting_streams()
    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Record a failure; Hydra calls this in the process of the job."""
        if config.hydra.mode != RunMode.MULTIRUN or job_return.status != JobStatus.FAILED:
            return
        task = job_return.overrides or ()
        overrides = (hide_secret(o) for o in task if not o.startswith("output="))
        # The property `return_value` would raise the exception; the private field holds it.
        line = f"{' '.join(overrides)}: {explain_failure(job_return._return_value)}"
        print(f"error: {line}", file=sys.stderr)
        folder = Path(config.hydra.sweep.dir) / "failed"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{config.hydra.job.num:04}.txt").write_text(line, encoding="utf-8")
        # Hydra stops a multirun at the first job that failed.
        job_return.status = JobStatus.COMPLETED
        job_return.return_value = None


def collect_failures(sweep: Path) -> list[str]:
    """Return one line for each failed job of a multirun, and remove what `Failures` wrote.

    The folder of the multirun is removed too if nothing else is in it.
    """
    files = sorted(sweep.glob("failed/*.txt"))
    lines = [file.read_text(encoding="utf-8") for file in files]
    for file in (*files, sweep / "multirun.yaml"):
        file.unlink(missing_ok=True)
    for folder in (sweep / "failed", sweep):
        with contextlib.suppress(OSError):
            os.removedirs(folder)
    return lines
