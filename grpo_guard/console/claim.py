"""Claims a run folder: one process at a time writes it, and one run is kept in it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from grpo_guard.console import cli
from grpo_guard.experiment import Experiment
from grpo_guard.keys import name_key
from grpo_guard.lifecycle.hub import check_hub
from grpo_guard.lifecycle.immaterial import flatten_settings
from grpo_guard.lifecycle.lock import lock_folder
from grpo_guard.lifecycle.states import SEAL, list_states
from grpo_guard.remote.client import Replicas
from grpo_guard.remote.tokens import read_token
from grpo_guard.schema import ConfigError, require


def check_before_claim(experiment: Experiment) -> None:
    """Raise ConfigError for what can be checked without loading anything or writing a folder."""
    check_source(experiment.resume)
    if experiment.checkpoint.push_to_hub is not None:
        check_hub(experiment.checkpoint.push_to_hub)
    check_servers(experiment)


def check_source(resume: str) -> None:
    """Raise ConfigError if `resume` is no state, or one of a run that an earlier version wrote."""
    if resume in ("auto", "never"):
        return
    run = Path(resume).absolute().parent.parent  # a state is RUN/state/<iteration>
    file = run / "config.yaml"
    if os.path.isfile(file):
        cli.read_config(file)
    require(
        os.path.isfile(Path(resume) / SEAL),
        f"resume={resume} is not a state of a run; give RUN/state/<iteration>, auto or never",
    )


def check_servers(experiment: Experiment) -> None:
    """Raise ConfigError if a token is not in the environment, or a server is down.

    config.yaml must not be written before: what was set as a token may be the token itself.
    """
    replicas = dict(find_replicas(experiment, ""))
    for key, part in replicas.items():
        with name_key(f"{key}."):
            read_token(part.token)
    for key, part in replicas.items():
        with name_key(f"{key}."):
            part.check_servers()


def find_replicas(part: Any, key: str) -> Iterator[tuple[str, Replicas]]:
    """Yield the parts of an experiment that ask servers, with their keys."""
    if isinstance(part, Replicas):
        yield key, part
        return
    children: Mapping[Any, Any] = {}
    if dataclasses.is_dataclass(part):
        children = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    elif isinstance(part, Mapping):
        children = part
    elif isinstance(part, list | tuple):
        children = dict(enumerate(part))
    for name, child in children.items():
        yield from find_replicas(child, f"{key}.{name}".lstrip("."))


@contextmanager
def claim(experiment: Experiment, cfg: DictConfig) -> Iterator[None]:
    """Hold the run folder, with its config.yaml, until the context exits.

    If the run is refused before it has written anything, the folder is left as it was. Raises
    ConfigError if the folder cannot be written, if another process writes it, or if it holds
    another run.
    """
    folder = Path(experiment.output)
    with ExitStack() as stack:
        with report_unwritable(folder):
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            stack.callback(remove_empty, missing)
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_folder(folder))
            is_new = write_config(experiment, cfg)
        try:
            yield
        except ConfigError:
            if is_new and not has_results(folder):
                (folder / "config.yaml").unlink(missing_ok=True)
            raise


@contextmanager
def report_unwritable(folder: Path) -> Iterator[None]:
    """Raise ConfigError instead of OSError if a run folder cannot be written."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(
            f"output={folder} cannot be written ({reason}); choose another folder"
        ) from error


def write_config(experiment: Experiment, cfg: DictConfig) -> bool:
    """Write config.yaml; returns whether there was none.

    Raises ConfigError if the folder holds results of another run. A folder that was claimed but
    has no results is used again.
    """
    folder = Path(experiment.output)
    file = folder / "config.yaml"
    is_new = not file.exists()
    if not is_new and has_results(folder):
        require(
            experiment.resume == "auto",
            f"resume={experiment.resume} begins a run, but output={folder} already holds one;"
            " give resume=auto to continue it, or choose another folder",
        )
        settings: Any = OmegaConf.to_container(cfg, resolve=True)
        changed = changed_settings(cli.read_config(file), settings)
        require(
            not changed,
            f"output={folder} holds a run with other settings ({', '.join(changed)}); choose"
            " another folder, or start there from a state of that run with resume=STATE",
        )
    # A run that is killed leaves the old file or the new one.
    temporary = file.with_suffix(".tmp")
    temporary.write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
    os.replace(temporary, file)
    return is_new


def has_results(folder: Path) -> bool:
    """Return whether a run folder holds a state, a checkpoint or the numbers of an iteration."""
    metrics = folder / "metrics.jsonl"
    return (
        bool(list_states(folder / "state"))
        or any(folder.glob("checkpoints/*"))
        or (metrics.exists() and metrics.stat().st_size > 0)
    )


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the top-level keys of the settings that differ and may not."""
    old, new = flatten_settings(before), flatten_settings(now)
    changed = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    return sorted({key.split(".")[0] for key in changed} - {"iterations"})


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders that are empty, from the innermost to the outermost."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
