"""The jobs of a multirun: their names, and the list of those that failed."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from grpo_guard.console.errors import explain_failure
from grpo_guard.console.overrides import hide_secret
from grpo_guard.console.streams import lasting_streams
from grpo_guard.lifecycle.immaterial import IMMATERIAL
from grpo_guard.schema import hide_secrets

NAMED = ("reward", "clipping", "seed")
"""Overrides that the default name of a run's folder holds already."""
JOBS = "GRPO_GUARD_JOBS"
"""Environment variable with the number of jobs of the multirun, for the processes of its jobs."""
VARIED = "GRPO_GUARD_VARIED"
"""Environment variable with the keys whose values differ between these jobs."""
LONGEST_NAME = 200
"""Maximum length of a job's name; file systems allow 255 characters in the name of a folder."""


def is_multirun() -> bool:
    """Return whether this process runs a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def job_suffix() -> str:
    """Return the end of the default name of a run's folder: "" for a single run.

    For a job of a multirun it is the number, and what varies that the name lacks, for example
    "_3_optim.lr=0.001".
    """
    if not is_multirun():
        return ""
    varied = [o for o in varied_overrides() if o.partition("=")[0] not in NAMED]
    words = (clean(hide_secret(override)) for override in varied)
    return shorten("_".join(["", str(HydraConfig.get().job.num), *words]))


def varied_overrides() -> list[str]:
    """Return those overrides of this job that differ between the jobs of its multirun."""
    keys = os.environ.get(VARIED, "").split()
    task = HydraConfig.get().overrides.task
    return [override for override in task if override.lstrip("+").partition("=")[0] in keys]


def describe_job() -> str:
    """Return, for example, "job 2 of 5: seed=1", or "" if this is no job of a multirun."""
    if not is_multirun():
        return ""
    count = os.environ.get(JOBS)
    place = f"job {HydraConfig.get().job.num + 1}" + (f" of {count}" if count else "")
    varied = " ".join(map(hide_secret, varied_overrides()))
    return f"{place}: {varied}" if varied else place


def job_name() -> str:
    """Return the overrides of a job as the name of a folder.

    For example "clipping=guard_seed=0", or "base" without overrides. The order of the overrides
    does not matter, so that the same command finds the same folder again.
    """
    unnamed = {"sweeps", *IMMATERIAL}
    overrides = sorted(override.lstrip("+~") for override in HydraConfig.get().overrides.task)
    named = (hide_secret(o) for o in overrides if re.split(r"[./@=]", o)[0] not in unnamed)
    return shorten("_".join(named)) or "base"


def clean(text: str) -> str:
    """Return a text without what the name of a folder should not have."""
    return re.sub(r"[^\w.=+-]+", "-", text).strip("-")


def shorten(text: str) -> str:
    """Return a text as the name of a folder; the end of a long one is replaced by its hash."""
    name = clean(text)
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name[:LONGEST_NAME]}_{digest}"


def quotient(whole: int, part: int) -> int:
    """Divide two settings: one setting can then balance another one that a sweep changes."""
    return whole // part


for resolver in (job_suffix, job_name, quotient):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


class Jobs(Callback):
    """Counts the jobs of a multirun and finds what varies, for the lines that its jobs print."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Leave both in the environment, which the processes of the jobs inherit."""
        # References such as ${seed} stay: only the jobs can resolve them.
        sweep: Any = OmegaConf.to_container(config.hydra.sweeper)
        task: Any = OmegaConf.to_container(config.hydra.overrides.task)
        words = [f"{key}={value}" for key, value in (sweep.get("params") or {}).items()]
        parsed = OverridesParser.create().parse_overrides([*words, *task])
        sweeps = {o.get_key_element().lstrip("+"): o for o in parsed}
        varied = {key: o for key, o in sweeps.items() if o.is_sweep_override()}
        os.environ[VARIED] = " ".join(varied)
        counted = all(o.is_choice_sweep() or o.is_range_sweep() for o in varied.values())
        os.environ.pop(JOBS, None)
        if "n_trials" in sweep:
            os.environ[JOBS] = str(sweep["n_trials"])
        elif counted:
            sizes = [len(list(o.sweep_string_iterator())) for o in varied.values()]
            os.environ[JOBS] = str(math.prod(sizes))


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
        line = hide_secrets(f"{' '.join(overrides)}: {explain_failure(job_return._return_value)}")
        print(f"error: {line}", file=sys.stderr)
        folder = Path(config.hydra.sweep.dir) / "failed"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{config.hydra.job.num:04}.txt").write_text(line, encoding="utf-8")
        # Hydra stops a multirun at the first job that failed.
        job_return.status = JobStatus.COMPLETED
        job_return.return_value = None


def finds_its_folders(arguments: Sequence[str]) -> bool:
    """Return whether a command gives its jobs the same folders every time.

    The default folder of a run does not qualify: it holds the time at which the run began.
    """
    named = (word.lstrip("+") for word in arguments if "${now:" not in word)
    return any(word.startswith(("sweeps=", "output=")) for word in named)


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
