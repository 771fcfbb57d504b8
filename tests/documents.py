"""Reads the documents: their commands, quotes of code, links and anchors."""

import re
import shlex

from grpo_guard.console import cli

HISTORY = {"log.md"}
"""Documents that keep commands and paths as they were."""
DOCUMENTS = sorted(
    [cli.ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    + [path for path in (cli.ROOT / "docs").rglob("*.md") if path.name not in HISTORY]
)
START = r"(?:python scripts/|torchrun |grpo-guard )"
PLACEHOLDERS = {
    "reward=<name>": "reward=statistics",
    "clipping=<name>": "clipping=guard",
    "backbone=<family> backbone.model=/path/to/checkpoint": "backbone=sd3_tiny",
    "/path/to/checkpoint": "sd3_tiny",
    "+sweeps=<name>": "+sweeps=table2",
    "resume=RUN/state/<iteration>": "resume=auto",
}


def name_of(path):
    return str(path.relative_to(cli.ROOT))


def read(path):
    return path.read_text(encoding="utf-8")


def blocks(text, language):
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def without_blocks(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def commands(path):
    """Return the commands of a document: lines of its shell blocks, and code in its sentences."""
    text = read(path)
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    inline = re.findall(r"`([^`]+)`", without_blocks(text))
    words = [" ".join(line.split("  #")[0].split()) for line in [*lines, *inline]]
    return {word for word in words if re.match(START, word) and not word.endswith("/")}


def all_commands():
    """Return the distinct commands of all documents, split into words."""
    texts = {command for path in DOCUMENTS for command in commands(path)}
    for placeholder, choice in PLACEHOLDERS.items():
        texts = {text.replace(placeholder, choice) for text in texts}
    return {text: shlex.split(text) for text in sorted(texts)}


def slug(heading):
    """Return the anchor that Python-Markdown and GitHub give a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def anchors(path):
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", read(path), re.MULTILINE)}


def links(path):
    """Return the relative links of a document as (target, anchor)."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_blocks(read(path)))
    return [target.partition("#")[::2] for target in targets if "://" not in target]


def is_quoted(quote, source):
    """Return whether a source holds the lines of a quote, at any indentation."""
    lines = [line.strip() for line in source.splitlines()]
    wanted = [line.strip() for line in quote.splitlines()]
    starts = range(len(lines) - len(wanted) + 1)
    return any(lines[start : start + len(wanted)] == wanted for start in starts)
