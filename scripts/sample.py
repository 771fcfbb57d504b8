"""Draw a run's checkpoint: python scripts/sample.py RUN [--prompts FILE | --prompt TEXT ...] [--help]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cli
import drawing
import reading
from grpo_guard.report import samples
from grpo_guard.types import require

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
    try:
        print(drawn(given))
    except cli.MISTAKES as error:
        print(f"error: {cli.explain(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        description="Draw prompts with a run's checkpoint, the base model beside it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    found.add_argument("--checkpoint", default="last", metavar="N", help="after N iterations, best, or last (default)")
    found.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt; may be repeated")
    found.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt per line (default: the run's own)")
    found.add_argument("--each", type=int, default=1, metavar="K", help="pictures of each prompt (default: 1)")
    found.add_argument("--steps", type=int, default=40, help="ODE steps (default: 40)")
    found.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    found.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    found.add_argument("--out", type=Path, metavar="DIR", help="where to draw (default: drawn/ in the run folder)")
    return found


def drawn(given: argparse.Namespace) -> Path:
    """The grid's path, after everything has been drawn."""
    require(given.each > 0 and given.steps > 0, f"--each={given.each} and --steps={given.steps} must be positive")
    folder, exp = drawing.checkpoint(given.run, given.checkpoint), cli.load(given.run)
    texts = [text for text in prompts(given) for _ in range(given.each)]
    found = drawing.base_and_tuned(exp, folder, texts, drawing.device(given.device), given.steps, given.seed)
    return kept(given.out or given.run / "drawn", found, texts, folder)


def prompts(given: argparse.Namespace) -> list[str]:
    """What to draw: as given, or the captions of the run's own samples."""
    if given.prompt:
        return list(given.prompt)
    return [text for _, text in reading.lines("--prompts", given.prompts or given.run / "samples" / "captions.txt")]


def kept(out: Path, found: drawing.Pictures, texts: Sequence[str], folder: Path) -> Path:
    """Write every picture and the grid."""
    drawing.keep(out, found)
    labels = {"base": "base", "tuned": drawing.label(folder)}
    strips = [samples.Strip(label=labels[name], tiles=drawing.tiles(images)) for name, images in found.items()]
    samples.sheet(strips, texts).savefig(out / "grid.png", dpi=150)
    return out / "grid.png"


if __name__ == "__main__":
    main()
