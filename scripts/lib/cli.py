"""What the scripts share: composing through Hydra, command lines, and one line for anything a user can mend."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import hashlib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from grpo_guard.experiment import Experiment
from grpo_guard.lifecycle.stop import Stopped
from grpo_guard.types import ConfigError, RunError

ROOT = Path(__file__).resolve().parents[2]
CONF = str(ROOT / "conf")
MISTAKES = (ConfigError, HydraException, OmegaConfBaseException)
RESUMABLE = 75  # EX_TEMPFAIL: the same command goes on
UNNAMED = {"sweeps", "output", "resume", "strategy", "logger", "checkpoint"}
"""Settings that make no other run, and so are not in a job's name."""
LONGEST = 200  # characters of a job's name, which a folder must be able to bear


def multirun() -> bool:
    """Whether this is a job among others."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def job_number() -> str:
    """ "_3" for the third job of a multirun, nothing for a single run."""
    return f"_{HydraConfig.get().job.num}" if multirun() else ""


def job_name() -> str:
    """The settings that a job was given, as the name of a folder: "clipping=guard_seed=0"; "base" where none was."""
    given = sorted(override.lstrip("+~") for override in HydraConfig.get().overrides.task)
    told = "_".join(o for o in given if re.split(r"[./@=]", o)[0] not in UNNAMED)
    name = re.sub(r"[^\w.=+-]+", "-", told).strip("-") or "base"
    digest = hashlib.sha256(told.encode()).hexdigest()[:8]
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}_{digest}"


def quotient(whole: int, part: int) -> int:
    """How many parts make the whole, for a setting that balances a swept one."""
    return whole // part


for resolver in (job_number, job_name, quotient):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def build(cfg: DictConfig) -> Experiment:
    """The experiment of a composed configuration; raises ConfigError in the words of the keys."""
    missing = OmegaConf.missing_keys(cfg)
    if missing:
        raise ConfigError(
            f"{', '.join(sorted(missing))} must be given; add {sorted(missing)[0]}=..."
        )
    return instantiate(cfg, _convert_="all")


def load(run: Path) -> Experiment:
    """The experiment of a run folder; raises ConfigError where it has none that can be read."""
    file = run / "config.yaml"
    try:
        return build(OmegaConf.create(file.read_text(encoding="utf-8")))
    except HydraException as error:
        raise ConfigError(f"{file}: {explain(error)}") from error
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ConfigError(
            f"{file} cannot be read ({' '.join(str(error).split())}); give a run folder"
        ) from error


def still() -> None:
    """No progress bars of libraries where they would fill a log, or where another process shows them."""
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        return
    from diffusers.utils.logging import disable_progress_bar as without_those_of_pipelines
    from transformers.utils.logging import disable_progress_bar as without_those_of_weights

    without_those_of_pipelines()
    without_those_of_weights()


def job(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """A Hydra job that ends in one line, before Hydra adds lines of its own; in a multirun, `Failures` tells it."""

    @functools.wraps(main)
    def guarded(cfg: DictConfig) -> Any:
        still()
        try:
            with full_disk_told():
                return main(cfg)
        except (*MISTAKES, RunError) as error:
            if multirun():
                raise
            fail(1 if isinstance(error, RunError) else 2, reason(error))
        except Stopped as told:
            fail(RESUMABLE, str(told), "stopped")

    return guarded


@contextlib.contextmanager
def full_disk_told() -> Iterator[None]:
    """A disk without room ends a run in a line: its last whole state is there to go on from."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(
            f"{error.strerror} ({error.filename}); make room, and the same command goes on"
        ) from error


class Failures(Callback):
    """Writes down a job that fails, in the folder of its multirun, and lets the other jobs go on."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Called by Hydra, in the process of the job."""
        if config.hydra.mode != RunMode.MULTIRUN or job_return.status != JobStatus.FAILED:
            return
        given = (o for o in job_return.overrides or () if not o.startswith("output="))
        line = f"{' '.join(given)}: {reason(job_return._return_value)}"
        print(f"error: {line}", file=sys.stderr)
        folder = Path(config.hydra.sweep.dir) / "failed"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{config.hydra.job.num:04}.txt").write_text(line, encoding="utf-8")
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None


def run(main: Callable[[], None]) -> None:
    """Call a Hydra main: 2 and one line for a setting that cannot be used, 1 for a run that failed or a multirun with
    jobs that did, 75 for one that was asked to stop and can go on, 130 for Ctrl-C.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(
        dict.fromkeys([str(ROOT / "scripts"), *pythonpath()])
    )
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # SIGINT itself may be ignored, in the background
    sweep = Path(f"runs/multirun/{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}")
    own = [
        f"hydra.searchpath=[file://{ROOT}]",
        f"hydra.sweep.dir={sweep}",
    ]  # where sweeps/ is, its own folder
    sys.argv[1:] = options_first([*sys.argv[1:], *own])
    failed: list[str] = []
    try:
        main()
    except MISTAKES as error:
        fail(2, explain(error))
    except ValueError:
        if not any(sweep.glob("failed/*")):  # Optuna finds no best among failures
            raise
    except KeyboardInterrupt:
        fail(
            130,
            "interrupted; the state of the last iteration is in the run folder, and the same command goes on from it",
        )
    finally:
        failed = gathered(sweep)
        if failed:
            told = "\n  ".join(failed)
            print(
                f"\n{len(failed)} failed; the same command runs no other job again:\n  {told}",
                file=sys.stderr,
            )
    if failed:
        raise SystemExit(1)


def options_first(arguments: Sequence[str]) -> list[str]:
    """The same with overrides at the end, as argparse wants them together."""
    return sorted(
        arguments,
        key=lambda word: not word.startswith("-") and ("=" in word or word.startswith("~")),
    )


def pythonpath() -> list[str]:
    """Where a launcher's processes look for modules."""
    return [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]


def gathered(sweep: Path) -> list[str]:
    """The failed jobs of a multirun, a line each; its folder goes if it holds nothing else."""
    files = sorted(sweep.glob("failed/*.txt"))
    lines = [file.read_text(encoding="utf-8") for file in files]
    for file in (*files, sweep / "multirun.yaml"):
        file.unlink(missing_ok=True)
    for folder in (sweep / "failed", sweep):
        with contextlib.suppress(OSError):
            os.removedirs(folder)
    return lines


def parser(description: str, epilog: str) -> argparse.ArgumentParser:
    """A command line without a configuration; the lines of the epilog stay as they are."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, epilog=epilog, formatter_class=form)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """2 and one line for what was given and cannot be used."""
    try:
        yield
    except MISTAKES as error:
        fail(2, explain(error))


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """One line where --out cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"--out={out} cannot be written ({error.strerror}); choose another place"
        ) from error


def fail(code: int, line: str, kind: str = "error") -> None:
    """Say why, in one line, and leave."""
    print(f"{kind}: {line}", file=sys.stderr)
    raise SystemExit(code)


def reason(error: BaseException) -> str:
    """Why a job failed, in one line; where nobody foresaw it, after its traceback."""
    if isinstance(error, MISTAKES):
        return explain(error)
    if not isinstance(error, RunError):
        traceback.print_exception(error)
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return str(error)


def explain(error: BaseException) -> str:
    """The innermost cause in one line, led by the key where Hydra knows it."""
    key = next(
        (
            line.split(": ", 1)[1]
            for line in str(error).splitlines()
            if line.startswith("full_key: ")
        ),
        "",
    )
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, ConfigError) and isinstance(error, HydraException):
        return f"{key}.{cause}" if key else str(cause)
    if (
        isinstance(cause, TypeError)
        and isinstance(error, HydraException)
        and (told := misfit(str(cause)))
    ):
        return f"{key}.{told}" if key else told
    return " ".join(str(error).split())


def misfit(words: str) -> str | None:
    """What Python says of a constructor's arguments, in the words of the keys."""
    missing = re.search(
        r"missing (?:a required argument|\d+ required keyword-only arguments?): (.+)", words
    )
    unknown = re.search(r"got an unexpected keyword argument ('\w+')", words)
    if missing:
        return (
            f"{missing[1].replace(chr(39), '')} must be given, as scripts/train.py --cfg job has it"
        )
    return f"{unknown[1][1:-1]} is unknown; leave it out" if unknown else None
