"""Draw a run's checkpoint: python scripts/sample.py RUN [--prompts FILE | --prompt TEXT ...] [--help]"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from grpo_guard.report import samples
from lib import cli, drawing, reading

EPILOG = """\
examples:
  python scripts/sample.py runs/tiny_ab/guard
  python scripts/sample.py runs/tiny_ab/guard --checkpoint 20 --prompt 'a red circle' --prompt 'the word "stop"'
  python scripts/sample.py runs/tiny_ab/guard --prompts prompts.txt --each 4 --out drawn

Every prompt is drawn by the model as it was loaded and by the checkpoint, from the same noise, with the run's guidance
and resolution. Pictures lie in base/ and tuned/ of the output folder, side by side in grid.png, whose path is printed
last. Exit status: 0, or 2 where something given cannot be used."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Load, draw, show."""
    given = parser().parse_args(arguments)
    cli.hide_progress_bars()
    with cli.exit_on_mistake():
        print(drawn(given))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.make_parser("Draw prompts with a run's checkpoint, the base model beside it.", EPILOG)
    found.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    asked = found.add_mutually_exclusive_group()
    asked.add_argument(
        "--prompt", action="append", metavar="TEXT", help="a prompt; may be repeated"
    )
    asked.add_argument(
        "--prompts", type=Path, metavar="FILE", help="one per line (default: the run's samples')"
    )
    drawing.device_option(found)
    found.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: drawn/ in RUN)"
    )
    drawing.options(found)
    return found


def drawn(given: argparse.Namespace) -> Path:
    """The grid's path, after everything has been drawn."""
    settings, where = drawing.Settings(**drawing.told(given)), drawing.device(given.device)
    folder, exp = drawing.checkpoint(given.run, settings.checkpoint), cli.load(given.run)
    texts = [text for text in prompts(given) for _ in range(settings.each)]
    found = drawing.base_and_tuned(exp, folder, texts, where, settings.steps, settings.seed)
    out = given.out or given.run / "drawn"
    with cli.report_unwritable(out):
        return kept(out, found, texts, folder)


def prompts(given: argparse.Namespace) -> list[str]:
    """What to draw: as given, or the captions of the run's own samples."""
    if given.prompt:
        return list(given.prompt)
    return [
        text
        for _, text in reading.read_lines(
            "--prompts", given.prompts or given.run / "samples" / "captions.txt"
        )
    ]


def kept(out: Path, found: drawing.Pictures, texts: Sequence[str], folder: Path) -> Path:
    """Write every picture and the grid."""
    drawing.keep(out, found)
    labels = {"base": "base", "tuned": drawing.label(folder)}
    strips = [
        samples.Strip(label=labels[name], tiles=drawing.tiles(images))
        for name, images in found.items()
    ]
    samples.sheet(strips, texts).savefig(out / "grid.png", dpi=150)
    return out / "grid.png"


if __name__ == "__main__":
    main()
