"""Names for a run on a dashboard: its arm, its group, its tags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from grpo_guard.schema import record

COMMON = {
    "sweeps", "experiment", "published", "preset", "output", "resume", "strategy", "logger",
    "checkpoint", "hydra", "iterations", "seed", "clipping",
}  # fmt: skip
"""First parts of overrides that name no arm: they are common to a sweep, or named otherwise."""
LONGEST_TAG = 64
"""Characters of a tag that W&B takes."""
LONGEST_NAME = 128
"""Characters of a name or a group that W&B takes."""


@record
class RunNames:
    """What a dashboard calls a run."""

    name: str
    """Arm and seed, such as "guard, reward=ocr, seed 3"."""
    group: str
    """Sweep and arm, such as "ab: guard, reward=ocr"; runs that differ in the seed share it."""
    tags: tuple[str, ...]
    """The choices that people filter by: objective, reward, backbone, data, experiment, sweep."""
    notes: str
    """The overrides of the command line."""


def name_run(config: Mapping[str, Any], folder: str) -> RunNames:
    """Name a run by its configuration, or by its folder if that has no objective.

    Of the configuration, `choices` are the choices of each group, `overrides` those of the command
    line, and `swept` the keys that a sweep varies.
    """
    choices = {key: str(value) for key, value in config.get("choices", {}).items() if value}
    overrides = [str(override).lstrip("+~") for override in config.get("overrides", ())]
    objective = config.get("clipping", {}).get("name")
    notes = " ".join(overrides)
    if objective is None:
        return RunNames(name=folder, group="", tags=(), notes=notes)
    swept = set(config.get("swept", ()))
    varied = [o for o in overrides if not swept or o.partition("=")[0] in swept]
    own = [o for o in varied if re.split(r"[./@=]", o)[0] not in COMMON or "clipping." in o]
    arm = ", ".join([str(objective), *sorted(own)])
    sweep = choices.get("sweeps") or choices.get("experiment") or choices.get("reward", "run")
    keys = ("reward", "backbone", "data", "experiment", "sweeps")
    tags = [str(objective), *(choices[key] for key in keys if key in choices)]
    return RunNames(
        name=f"{arm}, seed {config.get('seed')}"[:LONGEST_NAME],
        group=f"{sweep}: {arm}"[:LONGEST_NAME],
        tags=tuple(dict.fromkeys(tag[:LONGEST_TAG] for tag in tags)),
        notes=notes,
    )
