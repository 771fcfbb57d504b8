"""What a user may have meant: Hydra's refusals of an override as one line with the nearest name."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from rapidfuzz import fuzz, process

from grpo_guard.console.overrides import is_choice

MACHINERY = re.compile(r"_\w+_")
"""Names of keys that Hydra reads itself, such as `_target_`."""
MOST_NAMED = 8
"""Settings that a message names at most."""
LIKENESS = 70
"""How alike, in percent, a name and a known one must be for "did you mean"."""
PLUGINS = {
    "hydra/launcher/submitit": "grpo_guard[cluster]",
    "hydra/launcher/joblib": "hydra-joblib-launcher",
    "hydra/sweeper/optuna": "grpo_guard[sweep]",
}
"""The package that brings Hydra's configurations with such a beginning."""

ListKeys = Callable[[], Sequence[str]]
"""Lists the settings and groups of a configuration; called only if one is not known."""


def explain_override(message: str, list_keys: ListKeys) -> str | None:
    """Translate Hydra's refusal of an override; None if its message is about something else."""
    choice = re.search(
        r"Could not find '(.+)/(.+)'\n\nAvailable options in .*:\n((?:\t\S+\n?)+)", message
    )
    if choice:
        return _explain_choice(choice[1], choice[2], choice[3].split())
    config = re.search(r"Could not find '(.+)'", message)
    if config:
        return f"{config[1]} is no choice, and there is no folder of that name in conf/"
    if re.search(r"^Could not delete '(.+)'\. No match", message):
        key = message.split("'")[1]
        return f"~{key} leaves out what is not chosen; give another choice instead"
    bare = re.search(r"Error parsing override '(.+)'\nmissing EQUAL", message)
    if bare:
        return f"{bare[1]} has no value; give {bare[1]}=..."
    unknown = _unknown_key(message)
    return unknown and _explain_unknown(unknown, list_keys())


def suggest(name: str, known: Sequence[str]) -> str:
    """Return "did you mean ...?" with the known name that is most like `name`, or ""."""
    nearest = find_nearest(name, known)
    return f"did you mean {nearest}?" if nearest else ""


def find_nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that is most like `name`; None if none is like it."""
    nearest = process.extractOne(name, known, scorer=fuzz.ratio, score_cutoff=LIKENESS)
    return nearest[0] if nearest else None


def known_settings(conf: Path, config_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a configuration with their values, and its groups with theirs.

    Of the overrides, only choices count, and none of them if they cannot be composed.
    """
    choices = [word for word in overrides if is_choice(word, conf)]
    for words in (choices, []):
        with (
            contextlib.suppress(HydraException),
            initialize_config_dir(str(conf), version_base="1.3"),
        ):
            cfg = compose(config_name, words, return_hydra_config=True)
            groups = dict(cfg.hydra.runtime.choices)
            with open_dict(cfg):
                del cfg.hydra
            return groups | dict(flatten(OmegaConf.to_container(cfg)))
    return {}


def flatten(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of every setting, and of everything that holds settings.

    Keys of Hydra's own, such as `_target_`, are none.
    """
    children = settings if isinstance(settings, dict) else {}
    for name, child in children.items():
        if MACHINERY.fullmatch(str(name)):
            continue
        yield f"{prefix}{name}", child
        yield from flatten(child, f"{prefix}{name}.")


def _explain_choice(group: str, name: str, choices: Sequence[str]) -> str:
    for beginning, package in PLUGINS.items():
        if f"{group}/{name}".startswith(beginning):
            return f"{group}={name} needs a package; pip install '{package}'"
    advice = suggest(name, choices) or f"choose from {', '.join(choices)}"
    return f"{group}={name} is no choice; {advice}"


def _unknown_key(message: str) -> str | None:
    for pattern in (
        r"Could not override '(.+)'",
        r"Could not delete from config\. '(.+)' does not exist",
        r"config group '(.+)' does not exist",
    ):
        match = re.search(pattern, message)
        if match:
            return match[1]
    return None


def _explain_unknown(key: str, known: Sequence[str]) -> str:
    """Say that nothing has this setting; a known one belongs to another choice of its group."""
    owner, _, part = key.rpartition("/")
    if not owner or key not in known:
        return f"{key} is no setting; {_advise(key, known)}"
    return (
        f"{key} is chosen, here or by the experiment, but this {owner} has no {part};"
        f" choose another {owner}"
    )


def _advise(key: str, known: Sequence[str]) -> str:
    """Return the nearest known key, or else the settings of what should have had it.

    A key that has the same last part is near as well.
    """
    owner, _, last = key.rpartition(".")
    own = [name.removeprefix(f"{owner}.") for name in known if owner and _owner_of(name) == owner]
    # The settings of one owner all begin alike, so that only the last part tells which is near.
    near = find_nearest(last, own) if own else find_nearest(key, known)
    guess = f"{owner}.{near}" if own and near else near
    ends = [name for name in known if name.rpartition(".")[2] == last]
    if guess is None and len(ends) == 1:
        guess = ends[0]
    if guess:
        return f"did you mean {guess}?"
    if own:
        return f"{owner} has {_name_some(own)}"
    return "--help lists the choices, --cfg job all settings"


def _owner_of(key: str) -> str:
    return key.rpartition(".")[0]


def _name_some(names: Sequence[str]) -> str:
    """Return names in a row; of many, the first ones and where the others are."""
    if len(names) <= MOST_NAMED:
        return ", ".join(names)
    others = len(names) - MOST_NAMED
    return f"{', '.join(names[:MOST_NAMED])} and {others} more, which --cfg job lists"
