"""docs/reliability.md tells the truth: the tests that it names exist."""

import ast
import re

from grpo_guard.console import cli

TEXT = (cli.ROOT / "docs/reliability.md").read_text(encoding="utf-8")
TESTS = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)


def functions(path):
    """Return the names of the functions at the top of a file."""
    tree = ast.parse((cli.ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_fault_has_a_test_that_exists():
    section = re.search(r"^## Faults$(.*?)^## ", TEXT, re.MULTILINE | re.DOTALL)[1]
    rows = re.findall(r"^\| (?!fault)(.*) \|$", section, re.MULTILINE)
    assert len(rows) == len(TESTS) > 30
    assert [f"{path}::{name}" for path, name in TESTS if name not in functions(path)] == []


def test_every_test_of_faults_is_in_the_table():
    path = "tests/lifecycle/test_faults.py"
    named = {name for file, name in TESTS if file == path}
    tests = {name for name in functions(path) if name.startswith("test_")}
    assert tests - named == {"test_a_file_elsewhere_that_is_missing_is_not_the_folders_fault"}
