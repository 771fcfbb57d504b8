"""How the settings of runs differ, and the labels that tell runs apart by them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_guard.lifecycle.immaterial import Config, flatten_settings
from grpo_guard.report.notation import shorten_exponent


def label_runs(
    configs: Sequence[Config], folders: Sequence[str], *, with_usual: bool = False
) -> tuple[str, ...]:
    """Return a short label for each run.

    The label is the name of the run's variant, followed by the fewest settings that tell apart the
    runs of the same variant. A value that more than half of these runs share is left out, unless
    `with_usual` is set. A run that has another value somewhere names at least one such value. Runs
    with equal settings are told apart by the names of their folders.
    """
    labels = [variant_name(config) for config in configs]
    flat = [flatten_settings(config) for config in configs]
    for variant in dict.fromkeys(labels):
        alike = [i for i, config in enumerate(configs) if variant_name(config) == variant]
        phrases = _list_phrases([flat[i] for i in alike], with_usual=with_usual)
        longer = _tell_apart(variant, phrases, [folders[i] for i in alike])
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


def _list_phrases(flat: Sequence[Mapping[str, Any]], *, with_usual: bool) -> list[list[str]]:
    """Return one phrase per run for each setting that differs; "" for a usual value."""
    lists = []
    for key in _differing_keys(flat):
        phrases = [_phrase_setting(key, values) for values in flat]
        [(phrase, count)] = Counter(phrases).most_common(1)
        is_usual = count > len(flat) / 2 and not with_usual
        lists.append(["" if is_usual and other == phrase else other for other in phrases])
    return lists


def _tell_apart(variant: str, lists: Sequence[Sequence[str]], folders: Sequence[str]) -> list[str]:
    """Append settings to the variant's name where they make more of the labels distinct.

    They are also appended where they name something of a run that has no more than this name.
    """
    labels = [variant] * len(folders)
    for phrases in lists:
        pairs = list(zip(labels, phrases, strict=True))
        longer = [f"{label}, {phrase}" if phrase else label for label, phrase in pairs]
        names_one = any(phrase and label == variant for label, phrase in pairs)
        if names_one or len(set(longer)) > len(set(labels)):
            labels = longer
    if len(set(labels)) == len(labels):
        return labels
    return [f"{label}, {folder}" for label, folder in zip(labels, folders, strict=True)]


def _differing_keys(flat: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values differ.

    Those that choose a class come first, and among them a component before its parts.
    """
    keys = dict.fromkeys(key for values in flat for key in values)
    unequal = [key for key in keys if len({repr(values.get(key)) for values in flat}) > 1]
    classes = sorted((k for k in unequal if k.endswith("_target_")), key=lambda k: k.count("."))
    return classes + [key for key in unequal if key not in classes]


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
        return shorten_exponent(f"{value:g}")
    word = re.fullmatch(r"(?:[a-z_]\w*\.)+(\w+)", str(value))
    return word[1] if word else str(value)
