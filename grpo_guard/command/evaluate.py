"""Score a run's or a folder's pictures: python scripts/evaluate.py RUN|PICTURES [--help]"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from grpo_guard.console import cli, options
from grpo_guard.console.announcing import announce

EPILOG = """\
examples:
  python scripts/evaluate.py runs/tiny_ab/guard
  python scripts/evaluate.py runs/tiny_ab/guard --checkpoint best --count 192 \\
      --rewards world,pickscore_gold,ocr
  python scripts/evaluate.py runs/tiny_ab/guard --prompts prompts.txt --each 8 \\
      --rewards 'geneval measure=strict,diversity'
  python scripts/evaluate.py pictures --prompts prompts.jsonl \\
      --rewards geneval_coco,statistics

For a run, every prompt is drawn twice from the same noise: by the base model, as it was loaded, and
by the checkpoint. The guidance is the run's. Prompts and noise depend on --seed alone. PICTURES is
a folder of png, jpg and webp files. They are read in the order of their names: first those of the
first prompt, then as many of the second, and so on. A line of a file of prompts is GenEval's JSON,
JSON with `prompt`, a caption of the synthetic world, or any other text. A reward is a choice of
conf/reward with its settings. It scores only the prompts that it accepts.

The table has the mean, the standard error and n of every score, and how much the checkpoint gained
on the same prompts and noise. The output folder has the pictures of a run, their prompts in
prompts.jsonl, index.html, which needs no other file, and evaluation.json with the scores of every
picture. The exit status is 0, 1 if a reward fails, or 2 if an argument cannot be used."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Score the pictures, print the table, write the page and print its path."""
    args = parser().parse_args(arguments)
    with cli.exit_on_mistake():
        options.check_source(args)
        announce()
        from grpo_guard.command.evaluating import evaluate_and_print

        evaluate_and_print(args)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    words = (
        "Score the pictures of a run's checkpoint and its base model, or those of a folder,"
        " with rewards."
    )
    line = cli.make_parser(words, EPILOG)
    line.add_argument(
        "source", type=Path, metavar="RUN|PICTURES", help="a run folder, or a folder of pictures"
    )
    line.add_argument(
        "--prompts",
        default=options.HELDOUT,
        metavar="FILE",
        help="a file of prompts, one per line (default: the run's held-out prompts)",
    )
    line.add_argument(
        "--rewards",
        metavar="NAME,...",
        help="choices of conf/reward (default: the run's proxy and golds)",
    )
    options.add_device_option(line)
    line.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where to write (default: evaluation/ in RUN|PICTURES)",
    )
    run_options = options.add_drawing_options(line)
    run_options.add_argument(
        "--count",
        type=int,
        metavar="N",
        help=f"number of prompts (default: {options.HELDOUT_COUNT} held-out ones, or all of FILE)",
    )
    return line


if __name__ == "__main__":
    main()
