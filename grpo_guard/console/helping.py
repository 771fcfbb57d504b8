"""The text of --help: examples, what each group chooses, and a line for each choice."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from grpo_guard import __version__
from grpo_guard.console.announcing import command

VERSION = f"grpo_guard {__version__}"
"""What --version prints."""
WIDTH = 80
"""Columns of a terminal that nobody has made wider."""
PURPOSES = {
    "train": "Fine-tune a model, or resume a run.",
    "preflight": "Compare the clip range with the noise floor, before a run.",
    "serve": "Serve a reward over HTTP, to runs with reward=remote.",
}
"""What each command does."""
CONFIG_NAMES = {"train": "train", "preflight": "train", "serve": "serve"}
"""The file in conf/ that each command starts from."""
EXAMPLES: Mapping[str, Sequence[str]] = {
    "train": (
        "clipping=guard reward=ocr iterations=30",
        "experiment=sd35_ocr published=sd35_guard",
        "-m clipping=vanilla,guard seed=0,1,2",
    ),
    "preflight": (
        "clipping=guard",
        "experiment=sd35_ocr preset=gpu_24gb",
        "clipping=vanilla backbone.guidance=4.5",
    ),
    "serve": (
        "reward=pickscore port=8000",
        "reward=geneval_coco device=cuda:1",
        "reward=hpsv2 host=0.0.0.0 token=REWARD_TOKEN",
    ),
}
"""Overrides worth trying, for each command."""
SETTINGS = {"train": "optim.lr=1e-4", "preflight": "backbone.guidance=4.5", "serve": "port=8000"}
"""A setting of each command."""
GROUPS = {
    "backbone": "the model that is trained",
    "data": "the prompts",
    "sde": "the noisy denoising steps of a rollout",
    "sde/window": "which of these steps are noisy and trained",
    "reward": "the proxy reward, which is trained on",
    "watch": "what else is measured of every picture",
    "advantage": "how rewards become advantages",
    "clipping": "the objective: ratio, step weight and clip range",
    "clipping/adaptation": "how the clip range changes during a run",
    "clipping/ratio": "the log-ratio that is optimised",
    "clipping/weight": "the weight of each denoising step in the loss",
    "kl": "the penalty on the distance from the initial model",
    "old_policy": "where the old policy's part of the ratio comes from",
    "final_steps": "how a rollout ends after its last trained step",
    "ema": "which weights are evaluated and exported",
    "optim": "the optimizer",
    "strategy": "the device, and how several processes share the work",
    "logger": "where numbers and pictures go",
    "eval": "held-out prompts and the gold rewards that judge them",
    "experiment": "a recipe: settings of several groups that fit each other",
    "published": "the authors' settings, for an experiment on a real model",
    "published/task": "set by published= for one kind of prompts; do not choose it",
    "preset": "settings for a machine; several: 'preset=[fast,gpu_24gb]'",
    "preset/unguided": "set by preset=fast for a backbone; do not choose it",
}
"""What each group chooses."""
MULTIRUN = "-m, --multirun"
OPTIONS = {
    "--cfg job": "print all settings, and start nothing",
    "--info defaults": "print which choices are taken, and why",
    MULTIRUN: "run every combination of the values of lists: seed=0,1,2",
    "--config-dir DIR": "also find choices in a folder of your own",
    "--version": "print the version",
    "--hydra-help": "explain all options of Hydra, such as --shell-completion",
}
"""What each option does."""
ENDLESS = ("serve",)
"""Commands that do not end, and so cannot run one job after the other."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Fits paragraphs and lists of the description and the epilog into the terminal.

    A block of lines whose continuations are indented is a list of names and what they mean.
    Examples stay as they are.
    """

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = (self._fill_block(block, width) for block in text.strip().split("\n\n"))
        return "\n\n".join(blocks)

    def _fill_block(self, block: str, width: int) -> str:
        if block.startswith("examples:"):
            return block
        if "\n " not in block:
            return textwrap.fill(block, width)
        return "\n".join(self._fill_item(item, width) for item in re.split(r"\n(?! )", block))

    def _fill_item(self, item: str, width: int) -> str:
        [(name, words)] = re.findall(r"(?s)(\S+ +)(.*)", item)
        words = " ".join(words.split())
        margin = " " * len(name)
        return textwrap.fill(words, width, initial_indent=name, subsequent_indent=margin)


def answer(arguments: Sequence[str], conf: Path, name: str) -> bool:
    """Print the version or the help of a command if its arguments ask for one; return whether.

    Hydra's own --help reads all choices several times, which takes seconds.
    """
    if "--version" in arguments:
        print(VERSION)
    elif {"--help", "-h"} & {*arguments}:
        print(describe_command(conf, name))
    else:
        return False
    return True


def describe_command(conf: Path, name: str) -> str:
    """Return the text of --help of a command."""
    start = command(name)
    lines = [
        PURPOSES[name],
        "",
        f"usage: {start} [option ...] [choice or setting=value ...]",
        "",
        "examples:",
        *(f"  {start} {words}" for words in EXAMPLES[name]),
        "",
        "options:",
        *(f"  {option:<20} {words}" for option, words in find_options(name).items()),
        "",
        f"settings: key=value, such as {SETTINGS[name]}; --cfg job prints all of them",
        "",
        f"choices: group=choice, such as {EXAMPLES[name][0].split()[0]}; * marks the default:",
        *describe_choices(conf, CONFIG_NAMES[name]),
    ]
    return "\n".join(lines)


def find_options(name: str) -> Mapping[str, str]:
    """Return the options that a command can use, each with what it does."""
    sweeps = name not in ENDLESS
    return {option: words for option, words in OPTIONS.items() if sweeps or option != MULTIRUN}


def describe_choices(conf: Path, config_name: str) -> Iterator[str]:
    """Yield a line for each group of a configuration, and one for each of its choices."""
    for group, taken in find_groups(conf, config_name).items():
        yield f"\n{group}: {GROUPS[group]}"
        files = sorted((conf / group).glob("*.yaml"))
        width = max([19, *(len(file.stem) for file in files)])
        for file in files:
            mark = "*" if file.stem == taken else " "
            head = f" {mark}{file.stem:<{width}} "
            yield head + cut_to_clause(read_comment(file), WIDTH - len(head))


def find_groups(conf: Path, config_name: str) -> dict[str, str]:
    """Return the groups of a configuration, and groups within them, with the default choices."""
    defaults = yaml.safe_load((conf / f"{config_name}.yaml").read_text(encoding="utf-8"))
    groups = {}
    for entry in defaults["defaults"]:
        group, choice = next(iter(entry.items())) if isinstance(entry, dict) else (entry, "")
        if group == "hydra" or not (conf / group).is_dir():
            continue
        groups[group] = str(choice)
        groups |= {f"{group}/{path.name}": "" for path in sorted((conf / group).glob("*/"))}
    return groups


def read_comment(file: Path) -> str:
    """Return the first comment of a file that is neither Hydra's nor a command."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        if not re.match(r"@package|python |torchrun ", text):
            return text
    return ""


def cut_to_clause(text: str, length: int) -> str:
    """Return the first sentence of a text, and of a long one its first clauses."""
    for whole in (text, re.split(r"\. ", text)[0]):
        if len(words := whole.rstrip(".,:;")) <= length:
            return words
    sentence = re.sub(r" \([^)]*\)", "", whole).rstrip(".,:;")
    if len(sentence) <= length:
        return sentence
    ends = [match.start() for match in re.finditer(r"[,:;] ", sentence)]
    fitting = [end for end in ends if end <= length]
    return sentence[: max(fitting)] if fitting else textwrap.shorten(sentence, length)
