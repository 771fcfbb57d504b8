"""Where evaluate.py gets pictures: drawn by a run's checkpoint, or read from a folder."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from torch import Tensor

from grpo_guard.console import cli, drawing, options, reading
from grpo_guard.data import pick_prompts
from grpo_guard.data.geneval import parse_geneval
from grpo_guard.data.prompts import load_json, parse_plain
from grpo_guard.eval.heldout import HeldOut
from grpo_guard.experiment import Experiment
from grpo_guard.reward import Reward
from grpo_guard.schema import record, require
from grpo_guard.types import Prompt


@record
class PictureSource:
    """Prompts with the pictures of them."""

    prompts: Sequence[Prompt]
    """The prompt of each picture."""
    get_pictures: Callable[[Path], drawing.PicturesByModel]
    """Reads the pictures, or draws them and writes them into this output folder."""
    rewards: Mapping[str, Reward]
    """Rewards that score the pictures unless --rewards names others."""
    labels: Mapping[str, str]
    """Name of each model on the page."""
    files: Mapping[str, Sequence[str]]
    """Files of the pictures by model; relative paths start at the output folder."""
    about: Mapping[str, Any]
    """What the page says about the source."""


def load_source(args: argparse.Namespace) -> PictureSource:
    """Return the pictures of a run folder, or of a folder of pictures.

    `options.check_source` has accepted the arguments.
    """
    return load_run_source(args) if options.is_run(args.source) else load_folder_source(args)


def load_run_source(args: argparse.Namespace) -> PictureSource:
    """Return the pictures that a run's checkpoint and its base model draw of the prompts."""
    settings = options.DrawingSettings(**options.drawing_options(args))
    checkpoint = options.find_checkpoint(args.source, settings.checkpoint)
    exp = cli.load(args.source)
    chosen = choose_prompts(args.prompts, exp, args.count, settings.seed)
    prompts = [prompt for prompt in chosen for _ in range(settings.each)]

    def draw_pictures(out: Path) -> drawing.PicturesByModel:
        texts = [prompt.text for prompt in prompts]
        device = drawing.choose_device(args.device)
        pictures = drawing.draw_base_and_tuned(exp, checkpoint, texts, device, settings)
        with cli.report_unwritable(out):
            drawing.save_pictures(out, pictures)
            drawing.write_prompts(out, prompts, settings.each)
        return pictures

    label = options.checkpoint_label(checkpoint)
    golds = exp.eval.gold if isinstance(exp.eval, HeldOut) else {}
    names = [drawing.picture_name(row) for row in range(len(prompts))]
    return PictureSource(
        prompts=prompts,
        get_pictures=draw_pictures,
        rewards={"proxy": exp.reward, **golds},
        labels={"base": "base", "tuned": label},
        files={model: [f"{model}/{name}" for name in names] for model in ("base", "tuned")},
        about={
            "run": str(args.source),
            "checkpoint": label,
            "prompts": str(args.prompts),
            "steps": settings.steps,
            "seed": settings.seed,
        },
    )


def choose_prompts(file: str, exp: Experiment, count: int | None, seed: int) -> Sequence[Prompt]:
    """Return the first prompts of a file, or some of those that the run holds out of training."""
    if file != options.HELDOUT:
        return read_prompt_file(Path(file))[:count]
    split = exp.split()
    positions = range(count or options.HELDOUT_COUNT)
    return pick_prompts(split.heldout, split.in_turn, positions, seed, "evaluate")


def load_folder_source(args: argparse.Namespace) -> PictureSource:
    """Return the pictures in a folder."""
    folder = args.source
    pairs = reading.pair_pictures(folder, read_prompt_file(Path(args.prompts)))
    paths = [path for path, _ in pairs]
    return PictureSource(
        prompts=[prompt for _, prompt in pairs],
        get_pictures=lambda out: {"pictures": read_pictures(paths)},
        rewards={},
        labels={"pictures": "pictures"},
        files={"pictures": [str(path) for path in paths]},
        about={"pictures": str(folder), "prompts": str(args.prompts)},
    )


def read_prompt_file(file: Path) -> list[Prompt]:
    """Read captions of the synthetic world, GenEval's JSON, JSON with `prompt`, or any text."""

    def parse_line(line: str) -> Prompt:
        is_geneval = line.startswith("{") and "include" in load_json(line)
        return parse_geneval(line) if is_geneval else parse_plain(line)

    return reading.read_prompts("--prompts", file, parse_line)


def read_pictures(paths: Sequence[Path]) -> Float[Tensor, "N 3 H W"]:
    """Read pictures into one batch; raises ConfigError unless all have the same size."""
    tracked = track(paths, "reading", console=Console(stderr=True))
    images = [reading.open_image(path) for path in tracked]
    sizes = {tuple(image.shape[2:]) for image in images}
    require(
        len(sizes) == 1,
        f"PICTURES={paths[0].parent} has pictures of {len(sizes)} sizes; resize them to one",
    )
    return torch.cat(images)
