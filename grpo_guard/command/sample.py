"""Draw prompts with a run's checkpoint: python scripts/sample.py RUN [--prompts FILE] [--help]"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from grpo_guard.console import cli, options
from grpo_guard.console.announcing import announce

EPILOG = """\
examples:
  python scripts/sample.py runs/tiny_ab/guard
  python scripts/sample.py runs/tiny_ab/guard --checkpoint 20 \\
      --prompt 'a red circle' --prompt 'the word "stop"'
  python scripts/sample.py runs/tiny_ab/guard --prompts prompts.txt --each 4 \\
      --out drawn

Every prompt is drawn twice from the same noise: by the base model, as it was loaded, and by the
checkpoint. The guidance is the run's. The output folder has the pictures in base/ and tuned/, their
prompts in prompts.jsonl, and both side by side in grid.png, whose path is printed last. The exit
status is 0, or 2 if an argument cannot be used."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the pictures and print the path of the grid."""
    args = parser().parse_args(arguments)
    with cli.exit_on_mistake():
        settings = options.DrawingSettings(**options.drawing_options(args))
        options.find_checkpoint(args.run, settings.checkpoint)
        announce()
        from grpo_guard.command.sampling import draw_run

        print(draw_run(args, settings))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    line = cli.make_parser("Draw prompts with a run's checkpoint and with its base model.", EPILOG)
    line.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    prompts = line.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompt", action="append", metavar="TEXT", help="a prompt; may be repeated"
    )
    prompts.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="a file of prompts, one per line (default: the prompts of the run's samples)",
    )
    options.add_device_option(line)
    line.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: drawn/ in RUN)"
    )
    options.add_drawing_options(line)
    return line


if __name__ == "__main__":
    main()
