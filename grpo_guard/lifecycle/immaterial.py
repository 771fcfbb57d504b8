"""The settings that leave the numbers of a run as they are, and those that do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IMMATERIAL = (
    "output", "resume", "strategy", "logger", "checkpoint", "keep_trajectory", "backbone.compile",
    "eval.alarm", "eval.stop_on_over_optimisation",
)  # fmt: skip
"""Settings that change where and how a run is computed, kept and ended, but not its numbers."""

Config = Mapping[str, Any]
"""A composed configuration, as config.yaml holds it."""


def flatten_settings(config: Config, prefix: str = "") -> dict[str, Any]:
    """Return the settings that can change a result, under dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if key in IMMATERIAL:
            continue
        if isinstance(value, Mapping) and value:
            flat |= flatten_settings(value, f"{key}.")
        else:
            flat[key] = value
    return flat
