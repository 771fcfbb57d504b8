"""Draw prompts with a run's checkpoint: python scripts/sample.py RUN [--prompts FILE] [--help]"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from grpo_guard.console import cli, drawing, reading
from grpo_guard.data.prompts import parse_plain
from grpo_guard.report.figures import samples
from grpo_guard.types import Prompt

EPILOG = """\
examples:
  python scripts/sample.py runs/tiny_ab/guard
  python scripts/sample.py runs/tiny_ab/guard --checkpoint 20 \\
      --prompt 'a red circle' --prompt 'the word "stop"'
  python scripts/sample.py runs/tiny_ab/guard --prompts prompts.txt --each 4 --out drawn

Every prompt is drawn twice from the same noise: by the base model, as it was loaded, and by the
checkpoint. The guidance and the resolution are the run's. The output folder has the pictures in
base/ and tuned/, their prompts in prompts.jsonl, and both side by side in grid.png, whose path is
printed last. The exit status is 0, or 2 if an argument cannot be used."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the pictures and print the path of the grid."""
    args = parser().parse_args(arguments)
    cli.hide_progress_bars()
    with cli.exit_on_mistake():
        print(draw_run(args))


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
    drawing.add_device_option(line)
    line.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: drawn/ in RUN)"
    )
    drawing.add_drawing_options(line)
    return line


def draw_run(args: argparse.Namespace) -> Path:
    """Draw everything and return the path of the grid."""
    settings = drawing.DrawingSettings(**drawing.drawing_options(args))
    device = drawing.choose_device(args.device)
    checkpoint = drawing.find_checkpoint(args.run, settings.checkpoint)
    exp = cli.load(args.run)
    prompts = [prompt for prompt in choose_prompts(args) for _ in range(settings.each)]
    texts = [prompt.text for prompt in prompts]
    pictures = drawing.draw_base_and_tuned(exp, checkpoint, texts, device, settings)
    out = args.out or args.run / "drawn"
    with cli.report_unwritable(out):
        drawing.save_pictures(out, pictures)
        drawing.write_prompts(out, prompts, settings.each)
        return write_grid(out, pictures, texts, drawing.checkpoint_label(checkpoint))


def choose_prompts(args: argparse.Namespace) -> list[Prompt]:
    """Return the prompts of the command line or its file, else those of the run's samples."""
    if args.prompt:
        return [Prompt(text=text) for text in args.prompt]
    file = args.prompts or args.run / "samples" / "captions.txt"
    return reading.read_prompts("--prompts", file, parse_plain)


def write_grid(
    out: Path, pictures: drawing.PicturesByModel, texts: Sequence[str], tuned_label: str
) -> Path:
    """Write the pictures of all models side by side, and return the path of the file."""
    labels = {"base": "base", "tuned": tuned_label}
    strips = [
        samples.Strip(label=labels[name], tiles=drawing.make_tiles(images))
        for name, images in pictures.items()
    ]
    samples.draw_strips(strips, texts).savefig(out / "grid.png", dpi=150)
    return out / "grid.png"


if __name__ == "__main__":
    main()
