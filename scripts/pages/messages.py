"""The list of all messages with which a command refuses a setting or ends a run.

The messages are read from the source: the arguments of `require`, ConfigError, RunError and `fail`,
and the rules of annotated types. What the program fills in appears as an ellipsis.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILLED = "…"
"""Stands for what the program fills in."""
CALLS = {"require": 1, "ConfigError": 0, "RunError": 0, "fail": 1}
"""Functions and errors that take a message, and the position of the message."""
CURES = {
    "… is no caption of the synthetic world, and …": "give GenEval's JSON, or prompts as data=ocr"
    " reads them",
    "reward gives … to known pictures: …": "load the published weights, or set selftest=false",
    "reward gives … to known pictures, right or wrong: …": "load the published weights, or set"
    " selftest=false",
    "reward gives … to a picture of … but … to another: …": "load the published weights, or set"
    " selftest=false",
    "token …": "put the token into an environment variable and give its name",
    "… returned …": "the line says what a reward must return",
}
"""What to do about messages whose remedy the program fills in."""
RULES = {"Rule": (1, 2)}
"""Ranges of settings, and the positions of the fault and the remedy."""


@dataclasses.dataclass(frozen=True)
class Message:
    """One message of the program."""

    text: str
    """What it says, without the remedy."""
    remedy: str
    """What to do; empty if neither the message nor `CURES` says it."""
    module: str
    """Path of the module that raises it."""

    @property
    def line(self) -> str:
        """The whole line."""
        return f"{self.text}; {self.remedy}" if self.remedy else self.text


@functools.cache
def list_messages() -> list[Message]:
    """Return every message of the package, in the order of modules and lines."""
    messages: dict[Message, None] = {}
    for path in sorted((ROOT / "grpo_guard").rglob("*.py")):
        module = str(path.relative_to(ROOT))
        for text in _find_texts(ast.parse(path.read_text(encoding="utf-8"))):
            fault, _, remedy = text.partition("; ")
            messages[Message(fault, remedy or CURES.get(fault, ""), module)] = None
    return list(messages)


def _find_texts(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in CALLS and len(node.args) > CALLS[name]:
            text = _read_text(node.args[CALLS[name]])
        elif name in RULES and len(node.args) > max(RULES[name]):
            fault, remedy = (_read_text(node.args[i]) for i in RULES[name])
            text = f"{FILLED} {fault}; {remedy}"
        else:
            continue
        # Without a word of its own, a message is all filled in by the program.
        if re.search("[A-Za-z]", text.partition("; ")[0]):
            yield text


def _read_text(node: ast.expr) -> str:
    """Return a text whose computed parts are ellipses."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_read_text, node.values))
    if isinstance(node, ast.BinOp):
        return _read_text(node.left) + _read_text(node.right)
    return FILLED


def make_tables() -> str:
    """Return a Markdown table of messages for each part of the package."""
    by_part: dict[str, list[Message]] = defaultdict(list)
    for message in list_messages():
        parts = Path(message.module).parts
        by_part[parts[1] if len(parts) > 2 else "experiment, session, schema"].append(message)
    return "\n\n".join(_make_table(part, messages) for part, messages in sorted(by_part.items()))


def _make_table(part: str, messages: Sequence[Message]) -> str:
    head = [f"### {part}", "", "| message | what to do |", "|---|---|"]
    return "\n".join([*head, *(f"| {_quote(m.text)} | {_escape(m.remedy)} |" for m in messages)])


def _quote(text: str) -> str:
    return f"`{' '.join(text.split())}`".replace("|", "\\|")


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
