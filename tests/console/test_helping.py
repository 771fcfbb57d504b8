"""--help explains every choice in one line."""

import re
import sys
from pathlib import Path

import pytest

from grpo_guard.console import cli
from grpo_guard.console.helping import (
    CONFIG_NAMES,
    WIDTH,
    cut_to_clause,
    describe_choices,
    describe_command,
    find_groups,
    read_comment,
)

CONF = Path(cli.CONF)


@pytest.mark.parametrize("config_name", ["train", "serve"])
def test_every_choice_has_words_that_fit(config_name):
    lines = list(describe_choices(CONF, config_name))
    files = [file for group in find_groups(CONF, config_name) for file in (CONF / group).glob("*")]
    choices = [line for line in lines if not line.startswith("\n")]
    assert len(choices) == sum(file.suffix == ".yaml" for file in files)
    heads = [line.strip().partition(": ") for line in lines if line not in choices]
    assert [group for group, _, words in heads if words] == list(find_groups(CONF, config_name))
    assert all(len(line.strip()) <= WIDTH for line in lines)
    for line in choices:
        name, _, words = line.strip(" *").partition(" ")
        assert words.strip(), f"{name} has no comment"
        assert len(line) <= WIDTH
        assert "..." not in line


@pytest.mark.parametrize("config_name", ["train", "serve"])
def test_the_words_of_a_choice_tell_it_from_the_others_of_its_group(config_name):
    text = "\n".join(describe_choices(CONF, config_name))
    for group in text.strip().split("\n\n"):
        words = [line[2:].partition(" ")[2].strip() for line in group.splitlines()[1:]]
        assert sorted(set(words)) == sorted(words)


def test_a_line_says_what_a_choice_is_before_what_it_needs():
    (line,) = (line for line in describe_choices(CONF, "train") if "flux_dance_vanilla" in line)
    assert "DanceGRPO" in line


def test_the_text_has_examples_and_default_choices():
    text = describe_command(CONF, "train")
    assert text.count("  python scripts/train.py ") == 3
    assert "\n *guard " in text
    assert "\n  vanilla " in text


@pytest.mark.parametrize("program", CONFIG_NAMES)
def test_examples_start_a_script_that_exists_or_the_command(program, monkeypatch):
    scripts = set(re.findall(r"python (\S+)", describe_command(CONF, program)))
    (script,) = scripts
    assert (cli.ROOT / script).is_file()
    monkeypatch.setattr(sys, "argv", [f"grpo-guard {program}"])
    text = describe_command(CONF, program)
    assert text.count(f"  grpo-guard {program} ") == 3


def test_a_long_comment_is_cut_between_clauses():
    assert (
        cut_to_clause("One GPU: two images at a time, slowly.", 32)
        == "One GPU: two images at a time"
    )
    assert cut_to_clause("A model (arXiv 1234.5678) of words", 18) == "A model of words"
    assert cut_to_clause("All of it.", 80) == "All of it"
    assert cut_to_clause("All of it.", 9) == "All of it"
    assert cut_to_clause("All: none of it", 14) == "All"


def test_a_comment_is_neither_hydras_nor_a_command(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("# @package _global_\n# python scripts/train.py x=1\n# Words.\nx: 1\n")
    assert read_comment(file) == "Words."
    file.write_text("x: 1\n# late\n")
    assert read_comment(file) == ""
