"""docs/architecture.md is true: its records, layers, loop, tree, paths and commands exist."""

import dataclasses
import re
import shlex
import tomllib

import pytest
from hydra import compose, initialize_config_dir

from grpo_guard import types
from grpo_guard.console import cli
from grpo_guard.experiment import Experiment

TEXT = (cli.ROOT / "docs/architecture.md").read_text(encoding="utf-8")
# The log keeps the paths of its days, and recipes.md names files of other repositories.
GUIDES = sorted(
    path for path in (cli.ROOT / "docs").rglob("*.md") if path.name not in {"log.md", "recipes.md"}
)
PLACEHOLDERS = {"reward=<name>": "reward=statistics", "clipping=<name>": "clipping=guard"}
PLACEHOLDERS |= {"backbone=<family> backbone.model=/path/to/checkpoint": "backbone=sd3_tiny"}


def blocks(section, language):
    """Return the fenced blocks of a language in a section."""
    body = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)[1]
    return re.findall(rf"^```{language}\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)


def tree_paths():
    """Return the paths that the tree shows; folders end with a slash."""
    (block,) = blocks("The tree", "text")
    parents = []
    for line in block.splitlines():
        name = line.split()[0]
        del parents[(len(line) - len(line.lstrip())) // 2 :]
        parents.append(name)
        yield "".join(parents)


def records():
    """Return the records that the flow shows, with the names and shapes of their fields."""
    (block,) = blocks("What flows", "text")
    for name, body in re.findall(r"([A-Z]\w+)\(([^)]*)\)", block):
        fields = re.findall(r'(\w+)(?: "([^"]*)")?', body)
        yield pytest.param(getattr(types, name), fields, id=name)


@pytest.mark.parametrize(("record", "shown_fields"), records())
def test_records_have_the_fields_that_are_shown(record, shown_fields):
    annotations = {field.name: str(field.type) for field in dataclasses.fields(record)}
    for name, shape in shown_fields:
        assert name in annotations
        shapes = re.findall(r"Tensor, ['\"] ?(.*?)['\"]\]", annotations[name])
        assert shapes == ([shape] if shape else [])


def test_layers_are_those_of_the_contract():
    contract = tomllib.loads((cli.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = contract["tool"]["importlinter"]["contracts"][0]["layers"]
    (block,) = blocks("Layers", "text")
    assert block.splitlines() == [layer.replace("grpo_guard.", "") for layer in layers]


def test_the_loop_is_quoted():
    source = (cli.ROOT / "grpo_guard/train.py").read_text(encoding="utf-8")
    quotes = blocks("The loop", "python")
    assert [quote.split("(")[0] for quote in quotes] == ["def train", "def iterate"]
    assert [quote for quote in quotes if quote not in source] == []


def test_the_tree_is_whole():
    paths = set(tree_paths())
    assert [path for path in paths if not (cli.ROOT / path).exists()] == []
    files = {
        str(path.relative_to(cli.ROOT))
        for folder in ("grpo_guard", "scripts")
        for path in (cli.ROOT / folder).rglob("*.py")
        if path.name != "__init__.py" and path.parent.parent != cli.ROOT / "scripts"
    }
    packages = {
        f"{path.parent.relative_to(cli.ROOT)}/"
        for path in cli.ROOT.glob("grpo_guard/*/**/__init__.py")
    }
    assert sorted((files | packages) - paths) == []


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(cli.ROOT)))
def test_files_that_are_named_exist(guide):
    text = guide.read_text(encoding="utf-8")
    paths = re.findall(
        r"(?:grpo_guard|scripts|tests|conf|docs|sweeps)/[\w./-]+\.(?:py|yaml|json|md|png)\b", text
    )
    assert [path for path in paths if not (cli.ROOT / path).is_file()] == []


@pytest.mark.parametrize("command", re.findall(r"^python scripts/train.py .+$", TEXT, re.MULTILINE))
def test_commands_are_composed(command, tmp_path):
    for placeholder, choice in PLACEHOLDERS.items():
        command = command.replace(placeholder, choice)
    overrides = [*shlex.split(command)[2:], f"output={tmp_path}"]
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        assert isinstance(cli.build(compose("train", overrides=overrides)), Experiment)
