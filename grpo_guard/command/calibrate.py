"""Compare two GenEval rewards: calibrate_geneval.py PICTURES PROMPTS REWARD REWARD [--help]"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from grpo_guard.console import cli, options
from grpo_guard.console.announcing import announce

EPILOG = """\
examples:
  python scripts/calibrate_geneval.py pictures prompts.jsonl geneval_coco \\
      'geneval_coco detector.side=null'
  python scripts/calibrate_geneval.py pictures prompts.jsonl geneval_coco \\
      'geneval_coco detector.model=other' --out seen
  python scripts/calibrate_geneval.py RUN/drawn/tuned RUN/samples/captions.txt \\
      geneval 'geneval counting=0.9'

PICTURES is a folder of png, jpg and webp files. They are read in the order of their names: first
those of the first prompt, then as many of the second, and so on. A line of PROMPTS is either JSON
in GenEval's format or a caption of the synthetic world. A REWARD is a choice of conf/reward that
has a detector, with its settings in the same quotes. Prompts that one of the rewards cannot judge
are left out. The table has a row per tag. For each measure it shows the mean by REWARD A, the mean
by REWARD B, and the share of pictures on which both agree. The measures are the training reward
(graded), the benchmark's accuracy and the strict reward.

--out writes one line of JSON per picture: the measures of both rewards, and for every demand of the
prompt how far it is met, what was detected and what is missing. The exit status is 0, or 2 if an
argument cannot be used."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the pictures with both rewards and print the table."""
    args = parser().parse_args(arguments)
    with cli.exit_on_mistake():
        options.list_pictures(args.pictures)
        announce()
        from grpo_guard.command.calibrating import measure_and_print

        measure_and_print(args)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    line = cli.make_parser("Measure how far two detectors of GenEval agree, tag by tag.", EPILOG)
    line.add_argument("pictures", type=Path, metavar="PICTURES", help="a folder of pictures")
    line.add_argument(
        "prompts", type=Path, metavar="PROMPTS", help="a file of their prompts, one per line"
    )
    line.add_argument(
        "rewards",
        nargs=2,
        metavar="REWARD",
        help="such as geneval_coco, or 'geneval_coco KEY=VALUE'",
    )
    options.add_device_option(line)
    line.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to write one line of JSON per picture (default: nowhere)",
    )
    return line


if __name__ == "__main__":
    main()
