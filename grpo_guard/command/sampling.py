"""What scripts/sample.py does once its arguments are parsed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from grpo_guard.console import cli, drawing, options, sources
from grpo_guard.data.prompts import require_unicode
from grpo_guard.keys import name_key
from grpo_guard.report.figures import samples
from grpo_guard.types import Prompt


def draw_run(args: argparse.Namespace, settings: options.DrawingSettings) -> Path:
    """Draw everything and return the path of the grid."""
    cli.hide_progress_bars()
    device = drawing.choose_device(args.device)
    out = args.out or args.run / "drawn"
    checkpoint = options.find_checkpoint(args.run, settings.checkpoint)
    exp = cli.load(args.run)
    prompts = [prompt for prompt in choose_prompts(args) for _ in range(settings.each)]
    texts = [prompt.text for prompt in prompts]
    with cli.report_unwritable(out):
        out.mkdir(parents=True, exist_ok=True)
    pictures = drawing.draw_base_and_tuned(exp, checkpoint, texts, device, settings)
    with cli.report_unwritable(out):
        drawing.save_pictures(out, pictures)
        drawing.write_prompts(out, prompts, settings.each)
        return write_grid(out, pictures, texts, options.checkpoint_label(checkpoint))


def choose_prompts(args: argparse.Namespace) -> list[Prompt]:
    """Return the prompts of the command line or its file, else those of the run's samples."""
    if args.prompt:
        # Python reads bytes of a shell that are not UTF-8 as halves of surrogate pairs.
        with name_key("--prompt="):
            return [Prompt(text=require_unicode(text)) for text in args.prompt]
    return sources.read_prompt_file(args.prompts or args.run / "samples" / "captions.txt")


def write_grid(
    out: Path, pictures: drawing.PicturesByModel, texts: Sequence[str], tuned_label: str
) -> Path:
    """Write the pictures of all models side by side, and return the path of the file."""
    labels = {"base": "base", "tuned": tuned_label}
    strips = [
        samples.Strip(label=labels[name], tiles=drawing.make_tiles(images))
        for name, images in pictures.items()
    ]
    samples.save_strips(strips, texts, out / "grid.png")
    return out / "grid.png"
