"""The command `grpo-guard`: grpo-guard train clipping=guard reward=ocr iterations=30"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pkgutil import resolve_name

from grpo_guard.console.errors import REFUSED
from grpo_guard.console.helping import VERSION
from grpo_guard.console.suggestions import suggest

COMMANDS = {
    "train": ("train:start", "fine-tune a model, or resume a run"),
    "compare": ("compare:main", "make the page that compares runs"),
    "sample": ("sample:main", "draw prompts with a run's checkpoint"),
    "evaluate": ("evaluate:main", "score a run's pictures, or those of a folder"),
    "serve": ("serve:start", "serve a reward over HTTP"),
    "verify": ("verify:main", "compute the numbers of a run's iteration again"),
    "preflight": ("preflight:start", "compare the clip range with the noise floor"),
    "bench": ("bench:main", "measure or predict what training costs"),
    "wandb-report": ("wandb_report:main", "make a W&B report and workspace of runs"),
    "calibrate": ("calibrate:main", "compare two GenEval rewards"),
}
"""Where each command begins, below grpo_guard.command, and what it does."""
EXAMPLES = """\
examples:
  grpo-guard train clipping=guard reward=ocr iterations=30
  grpo-guard train -m experiment=tiny_ab clipping=vanilla,guard
  grpo-guard compare 'runs/2026-01-31/*'

grpo-guard COMMAND --help explains a command."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names with the other arguments."""
    name, *others = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    if name in ("--help", "-h"):
        print(format_help())
    elif name == "--version":
        print(VERSION)
    elif name in COMMANDS:
        sys.argv = [f"grpo-guard {name}", *others]
        resolve_name(f"grpo_guard.command.{COMMANDS[name][0]}")()
    else:
        advice = suggest(name, list(COMMANDS)) or f"choose one of {', '.join(COMMANDS)}"
        print(f"error: {name} is no command; {advice}", file=sys.stderr)
        raise SystemExit(REFUSED)


def format_help() -> str:
    """Return the commands, each with a line, and examples."""
    lines = [f"  {name:<14}{words}" for name, (_, words) in COMMANDS.items()]
    usage = "usage: grpo-guard COMMAND [arguments]"
    return "\n".join([usage, "", "commands:", *lines, "", EXAMPLES])


if __name__ == "__main__":
    main()
