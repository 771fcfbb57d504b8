"""Checks settings before torch is imported, which takes seconds.

What cannot be judged without an import passes: building the experiment checks everything.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from grpo_guard.console.source_text import find_definition, read_annotations, stand_in
from grpo_guard.keys import name_key
from grpo_guard.lifecycle.batches import BatchSizes
from grpo_guard.messages import first_line
from grpo_guard.parallel.optimizer import check_optimizer_settings
from grpo_guard.remote.tokens import read_token
from grpo_guard.schema import ConfigError, check_value, require

_FLAGS = ("_partial_", "_recursive_")
SINGLE = "grpo_guard.strategy.single.Single"
"""The strategy of a single process."""


def check_early(cfg: DictConfig) -> None:
    """Raise ConfigError for a setting that is missing, or that its annotation refuses."""
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        settings: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        reason = first_line(error)
        raise ConfigError(
            f"{error.full_key} cannot be resolved ({reason}); give a value"
        ) from error
    if missing:
        raise ConfigError(f"{', '.join(missing)} must be given; add {missing[0]}=...")
    describe("", settings)
    if "iterations" in settings:  # a run, and not a server
        _check_batches(settings)
        _check_source(settings["resume"])
        _check_output(settings["output"])


def _check_batches(settings: dict[str, Any]) -> None:
    """Raise ConfigError if the batches of one process do not divide.

    They are known here unless they depend on the window of trained steps or on a launcher.
    """
    rows, microbatch = settings["steps_per_sample"], settings["microbatch"]
    is_single = settings["strategy"].get("_target_") == SINGLE
    if is_single and isinstance(rows, int) and isinstance(microbatch, int):
        data = settings["data"]
        BatchSizes(
            prompts=data["prompts"],
            repeats=data["repeats"],
            rows=rows,
            updates=settings["updates"],
            processes=1,
            microbatch=microbatch,
        )


def _check_source(resume: str) -> None:
    """Raise ConfigError if a state to start from is no folder, and of no run."""
    of_run = os.path.join(os.path.dirname(os.path.dirname(resume)), "config.yaml")
    require(
        resume in ("auto", "never") or os.path.isdir(resume) or os.path.isfile(of_run),
        f"resume={resume} is not a state of a run; give RUN/state/<iteration>, auto or never",
    )


def _check_output(output: str) -> None:
    """Raise ConfigError if a folder that is not there yet cannot be made."""
    folder = Path(output).absolute()
    if folder.is_dir():
        return
    place = next(path for path in (folder, *folder.parents) if path.exists())
    reason = "Not a directory" if not place.is_dir() else "Permission denied"
    if place.is_dir() and os.statvfs(place).f_flag & os.ST_RDONLY:
        reason = "Read-only file system"
    require(
        place.is_dir() and os.access(place, os.W_OK),
        f"output={output} cannot be written ({reason}: {place}); choose another folder",
    )


def describe(key: str, settings: Any) -> Any:
    """Check settings and all that is in them; return what stands for what they make."""
    if isinstance(settings, list):
        return [describe(f"{key}[{row}]", entry) for row, entry in enumerate(settings)]
    if not isinstance(settings, dict):
        return settings
    values = {name: describe(f"{key}.{name}".lstrip("."), settings[name]) for name in settings}
    if "_target_" not in settings:
        return values
    for flag in _FLAGS:
        fits = isinstance(settings.get(flag, True), bool)
        require(fits, f"{key}.{flag}={settings.get(flag)} is no flag; give true or false")
    settings = {name: value for name, value in values.items() if name[:1] != "_"}
    _check_settings(key, str(values["_target_"]), settings)
    return stand_in(str(values["_target_"]), settings, bool(values.get("_partial_")))


def _check_settings(key: str, target: str, settings: dict[str, Any]) -> None:
    """Raise ConfigError unless these settings suit what a target names."""
    prefix = f"{key}." if key else ""
    is_own = target.startswith("grpo_guard.")
    definition = find_definition(target) if is_own else None
    require(
        definition is not None or (not is_own and _is_of_a_module(target)),
        f"{prefix}_target_={target} is no class or function; give one as in conf/",
    )
    if definition is None:
        _check_settings_of_a_library(prefix, target, settings)
        return
    hints = read_annotations(*definition)
    if hints is None:
        return
    for name, value in settings.items():
        require(name in hints, f"{prefix}{name} is unknown; remove it")
        check_value(f"{prefix}{name}", value, hints[name])
        if name == "token":
            with name_key(prefix):
                read_token(value)


def _is_of_a_module(target: str) -> bool:
    """Return whether a library or a file of the user's has the beginning of a target's name."""
    package = target.partition(".")[0]
    if "." not in target or not package.isidentifier():
        return True  # to be judged by the whole check
    here = Path(package)  # users keep files of their own where they start a command
    is_here = here.is_dir() or here.with_suffix(".py").is_file()
    return is_here or importlib.util.find_spec(package) is not None


def _check_settings_of_a_library(prefix: str, target: str, settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        if type(value) in (int, float):
            check_value(f"{prefix}{name}", value, float)
    if target.startswith("torch.optim."):
        check_optimizer_settings(settings)
