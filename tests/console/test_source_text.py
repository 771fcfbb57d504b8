"""Annotations that are read from the source are those that an import gives."""

import dataclasses
import inspect
import typing
from importlib import import_module

import pytest

from grpo_guard.backbone.sd3 import SD3
from grpo_guard.console import cli
from grpo_guard.console.source_text import find_definition, read_annotations
from grpo_guard.data.prompts import parse_plain
from grpo_guard.experiment import Experiment
from grpo_guard.schema import Advice, AtMost, Rule
from grpo_guard.sde import window
from grpo_guard.strategy.zero import Zero


def read(target):
    return read_annotations(*find_definition(target))


def ranges(hint):
    """Return the words of all rules in a type, however deep."""
    notes = getattr(hint, "__metadata__", ())
    words = {
        note.fault if isinstance(note, Rule) else note
        for note in notes
        if isinstance(note, Rule | AtMost | Advice)
    }
    inner = typing.get_args(hint) if typing.get_origin(hint) is not typing.Literal else ()
    return words.union(*map(ranges, [part for part in inner if part not in notes]))


@pytest.mark.parametrize("cls", [Experiment, SD3, Zero, window.Sliding])
def test_settings_and_their_ranges_are_those_of_the_class(cls):
    hints = typing.get_type_hints(cls, include_extras=True)
    expected = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    texts = read(f"{cls.__module__}.{cls.__qualname__}")
    assert texts.keys() == expected.keys()
    for name, hint in expected.items():
        assert ranges(texts[name]) == ranges(hint), name
        if hint in (int, float, str, bool):
            assert texts[name] is hint


def test_a_function_has_its_arguments():
    target = f"{parse_plain.__module__}.{parse_plain.__qualname__}"
    assert read(target).keys() == inspect.signature(parse_plain).parameters.keys()


def targets():
    """Return everything of the package that conf/ targets."""
    texts = (path.read_text(encoding="utf-8") for path in cli.SETTINGS.glob("conf/**/*.yaml"))
    lines = {line.strip() for text in texts for line in text.splitlines()}
    return sorted(line.split()[1] for line in lines if line.startswith("_target_: grpo_guard."))


def test_all_that_conf_targets_is_found():
    assert len(targets()) > 50
    for target in targets():
        module, _, name = target.rpartition(".")
        assert find_definition(target), target
        assert hasattr(import_module(module), name)


@pytest.mark.parametrize(
    "target",
    ["grpo_guard.nothing.Nothing", "grpo_guard.kl.none.Nothing", "os.path.join", "grpo_guard", ""],
)
def test_what_the_package_lacks_is_not_found(target):
    assert find_definition(target) is None


def test_a_name_that_is_imported_is_followed():
    module, definition = find_definition("grpo_guard.experiment.Kl")
    assert (module, definition.name) == ("grpo_guard.kl", "Kl")
