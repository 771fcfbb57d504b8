"""The page of all settings: every choice of conf/, and each key with type, default and meaning.

The keys and defaults come from the composed YAML files. Types and meanings come from the classes
that these files name. A key without a meaning raises MissingWords.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from grpo_guard.experiment import Experiment
from grpo_guard.lifecycle.immaterial import IMMATERIAL
from grpo_guard.serve import Service
from pages.choices import CONF, PLAIN, Node, compose_choices, describe_choice
from pages.fields import Setting, describe_fields, list_settings, read_field_docstrings

COLUMNS = ("key", "type", "default", "meaning")
HEAD = """\
# Settings

This page is made from `conf/` and from the classes that it names.
`python scripts/train.py --cfg job` prints the same settings as they are composed for a run.

A run consists of parts. `part=choice` exchanges a part (`clipping=guard`), and `part.key=value`
sets a key of it (`clipping.high=1e-6`). `null` means nothing. `experiment=`, `published=` and
`preset=` set keys of several parts at once.

## The parts of a run

{parts}

## The numbers of a run

{immaterial} say where and how a run is computed and kept. They do not change its result.

{numbers}"""
SERVE = """\
## Serving a reward

The settings of `python scripts/serve_reward.py`.

{table}"""


def make_page() -> str:
    """Return the page as Markdown; raises MissingWords."""
    groups = [_make_group_section(group, choices) for group, choices in compose_choices().items()]
    return (
        "\n\n".join([_make_head(), *groups, *map(_make_plain_section, PLAIN), _make_serve()]) + "\n"
    )


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONF / name).read_text(encoding="utf-8"))
    return content


def _make_head() -> str:
    """Return the introduction, the table of a run's parts and that of its numbers."""
    top = _read("train.yaml")
    chosen = {
        part: name
        for entry in top["defaults"]
        if isinstance(entry, dict)
        for part, name in entry.items()
    }
    meanings = read_field_docstrings(Experiment)
    parts = [
        (f"[`{part}`](#{part})", f"`{chosen[part]}`", words)
        for part, words in meanings.items()
        if part in chosen
    ]
    numbers = [
        setting for setting in describe_fields(Experiment, top, "") if setting.key not in chosen
    ]
    return HEAD.format(
        parts=_make_table(("part", "default", "meaning"), parts),
        numbers=_make_table(COLUMNS, [_make_row(setting) for setting in numbers]),
        immaterial=", ".join(f"`{key}`" for key in IMMATERIAL),
    )


def _make_group_section(group: str, choices: Mapping[str, Node]) -> str:
    """Return the section of a group: its choices, then the keys by the class that has them."""
    rows = [(f"`{name}`", describe_choice(CONF / group / f"{name}.yaml")) for name in choices]
    by_class: dict[str, list[str]] = defaultdict(list)
    for name, node in choices.items():
        by_class[node["_target_"]].append(name)
    blocks = [f"## {group}", _make_table((f"`{group}=`", "what"), rows)]
    for target, names in by_class.items():
        rows_of_keys = _merge_choices({name: list_settings(group, name) for name in names})
        if rows_of_keys:
            listed = ", ".join(f"`{group}={name}`" for name in names)
            blocks.append(f"### {group}: {target.rpartition('.')[2]}")
            blocks.append(f"`{target}`, for {listed}.")
            blocks.append(_make_table(COLUMNS, rows_of_keys))
    return "\n\n".join(blocks)


def _merge_choices(by_choice: Mapping[str, Sequence[Setting]]) -> list[Sequence[str]]:
    """Return a row for each key of choices that share a class, with the default of each choice."""
    merged: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    first: dict[tuple[str, str], Setting] = {}
    for name, settings in by_choice.items():
        for setting in settings:
            row = (setting.key, setting.meaning)
            merged[row][setting.default].append(name)
            first.setdefault(row, setting)
    return [
        (f"`{key}`", first[key, meaning].kind, _join_defaults(by_value, len(by_choice)), meaning)
        for (key, meaning), by_value in merged.items()
    ]


def _join_defaults(by_value: Mapping[str, Sequence[str]], choices: int) -> str:
    """Return a default, with the choices that have it unless all of them do."""
    (first, names), *others = by_value.items()
    if not others and len(names) == choices:
        return first
    return "<br>".join(f"{value} ({', '.join(names)})" for value, names in by_value.items())


def _make_plain_section(group: str) -> str:
    """Return the section of a group whose choices set keys of other groups."""
    folder = CONF / group
    rows = [(f"`{_name(file, folder)}`", describe_choice(file)) for file in _list_files(folder)]
    return f"## {group}\n\n" + _make_table((f"`{group}=`", "what"), rows)


def _list_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.yaml"))


def _name(file: Path, folder: Path) -> str:
    return str(file.relative_to(folder).with_suffix(""))


def _make_serve() -> str:
    """Return the settings of the command that serves a reward."""
    top = _read("serve.yaml") | {"reward": "pickscore", "name": "the name of the choice of reward"}
    rows = [_make_row(setting) for setting in describe_fields(Service, top, "")]
    return SERVE.format(table=_make_table(COLUMNS, rows))


def _make_row(setting: Setting) -> tuple[str, ...]:
    return f"`{setting.key}`", setting.kind, setting.default, setting.meaning


def _make_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_escape, line))} |" for line in lines)


def _escape(cell: str) -> str:
    """Keep the pipes of a cell from ending it, and its angle brackets from being HTML."""
    return cell.replace("|", "\\|").replace("<", "&lt;").replace("&lt;br>", "<br>")
