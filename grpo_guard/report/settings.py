"""How the settings of runs differ, and the labels that tell runs apart by them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_guard.lifecycle.immaterial import Config, flatten_settings


def label_runs(configs: Sequence[Config], folders: Sequence[str]) -> tuple[str, ...]:
    """Return a short label for each run.

    The label is the name of the run's variant, followed by the fewest settings that tell apart the
    runs of the same variant. Runs with equal settings are told apart by the names of their folders.
    """
    labels = [variant_name(config) for config in configs]
    flat = [flatten_settings(config) for config in configs]
    for variant in dict.fromkeys(labels):
        alike = [i for i, config in enumerate(configs) if variant_name(config) == variant]
        longer = _tell_apart(variant, [flat[i] for i in alike], [folders[i] for i in alike])
        for i, label in zip(alike, longer, strict=True):
            labels[i] = label
    return tuple(labels)


def variant_name(config: Config) -> str:
    """Return the name of the clipping variant, such as "guard"."""
    return str(config["clipping"]["name"])


def differing_settings(configs: Sequence[Config]) -> dict[str, tuple[str, ...]]:
    """Return the settings that differ, one value per run ("" if a run lacks the setting).

    A setting that is null counts as absent, as it is in runs that are older than the setting.
    """
    flat = [flatten_settings(config) for config in configs]
    return {
        key: tuple(_format_value(values[key]) if key in values else "" for values in flat)
        for key in _differing_keys(flat)
    }


def _tell_apart(
    variant: str, flat: Sequence[Mapping[str, Any]], folders: Sequence[str]
) -> list[str]:
    """Append settings to the variant's name as long as they make more of the labels distinct."""
    labels = [variant] * len(flat)
    for key in _differing_keys(flat):
        longer = [
            f"{label}, {_phrase_setting(key, values)}"
            for label, values in zip(labels, flat, strict=True)
        ]
        if len(set(longer)) > len(set(labels)):
            labels = longer
    if len(set(labels)) == len(labels):
        return labels
    return [f"{label}, {folder}" for label, folder in zip(labels, folders, strict=True)]


def _differing_keys(flat: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values differ; those that choose a class come first."""
    keys = dict.fromkeys(key for values in flat for key in values)
    unequal = [key for key in keys if len({repr(values.get(key)) for values in flat}) > 1]
    return sorted(unequal, key=lambda key: not key.endswith("_target_"))


def _phrase_setting(key: str, values: Mapping[str, Any]) -> str:
    """Return a setting as part of a label, such as "seed 3", "weight uniform" or "ocr"."""
    value = _format_value(values[key]) if key in values else "none"
    part = re.fullmatch(r"clipping\.(\w+)\._target_", key)
    if part:
        return f"{part[1]} {value.lower().removeprefix('log_ratio_')}"
    if key.endswith("_target_"):
        return value.lower()
    names = {"clipping.high": "clip", "clipping.low": "lower clip"}
    return f"{names.get(key, key.rpartition('.')[2].replace('_', ' '))} {value}"


def _format_value(value: Any) -> str:
    """Return the text of a setting's value; of a dotted path to a class only the last word."""
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-").replace("e+0", "e")
    word = re.fullmatch(r"(?:[a-z_]\w*\.)+(\w+)", str(value))
    return word[1] if word else str(value)
