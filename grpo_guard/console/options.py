"""Options of the commands that draw or read pictures, and checks of them that need no torch."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from grpo_guard.schema import record, require

LAST = "last"
BEST = "best"
HELDOUT = "heldout"
"""Value of --prompts that means the prompts that the run holds out of training."""
HELDOUT_COUNT = 64  # if --count is not on the command line
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@record
class DrawingSettings:
    """The options that choose what is drawn."""

    checkpoint: str = LAST
    """The checkpoint: a number of iterations, best or last."""
    each: int = 1
    """Number of pictures of each prompt."""
    steps: int = 40
    """Number of ODE steps."""
    seed: int = 0
    """Seed of the noise; evaluate.py also chooses held-out prompts by it."""
    resolution: int | None = None
    """Height and width of a picture in pixels; None: those of the run's evaluations."""

    def __post_init__(self) -> None:
        for key in ("each", "steps", "resolution"):
            value = getattr(self, key)
            require(value is None or value > 0, f"--{key}={value} is not positive; give 1 or more")


def add_drawing_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options of `DrawingSettings` under a heading of their own, and return their group."""
    group = parser.add_argument_group("drawing with a run's checkpoint")
    for key, kind, metavar, words in (
        ("checkpoint", str, "N", "after N iterations, best, or last"),
        ("each", int, "K", "pictures of each prompt"),
        ("steps", int, "N", "ODE steps"),
        ("seed", int, "N", "random seed"),
        ("resolution", int, "N", "height and width in pixels"),
    ):
        default = getattr(DrawingSettings, key)
        words += f" (default: {'that of evaluations' if default is None else default})"
        group.add_argument(f"--{key}", type=kind, metavar=metavar, help=words)
    return group


def drawing_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return those options of `DrawingSettings` that are on the command line."""
    options = {field.name: getattr(args, field.name) for field in fields(DrawingSettings)}
    return {key: value for key, value in options.items() if value is not None}


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add --device, which `choose_device` reads."""
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N (default: auto)"
    )


def find_checkpoint(run: Path, which: str) -> Path:
    """Return the folder of a checkpoint: after so many iterations, the last one or the best one.

    Raises ConfigError if the run does not have it.
    """
    folder = run / "checkpoints"
    numbered = {int(path.name): path for path in folder.glob("*") if path.name.isdigit()}
    checkpoints = {str(number): numbered[number] for number in sorted(numbered)}
    if (folder / BEST).is_dir():
        checkpoints[BEST] = folder / BEST
    if numbered:
        checkpoints[LAST] = numbered[max(numbered)]
    require(bool(checkpoints), f"{run} has no checkpoint; give a run folder that has checkpoints/")
    key = str(int(which)) if which.isdigit() else which
    require(
        key in checkpoints,
        f"--checkpoint={which} is not there; choose from {', '.join(checkpoints)}",
    )
    return checkpoints[key]


def checkpoint_label(folder: Path) -> str:
    """Return the name of a checkpoint on a page."""
    return f"iteration {int(folder.name)}" if folder.name.isdigit() else folder.name


def list_pictures(folder: Path) -> list[Path]:
    """Return the pictures of a folder, sorted by name; raises ConfigError if there are none."""
    pictures = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    require(
        bool(pictures),
        f"PICTURES={folder} holds no {', '.join(SUFFIXES)}; give a folder of pictures",
    )
    return pictures


def is_run(folder: Path) -> bool:
    """Return whether a folder looks like that of a run, and not like one of pictures."""
    return any((folder / name).exists() for name in ("config.yaml", "checkpoints"))


def check_source(args: argparse.Namespace) -> None:
    """Raise ConfigError for options that do not suit a run folder, or a folder of pictures."""
    drawing = drawing_options(args)
    if is_run(args.source):
        require(
            args.count is None or args.count > 0,
            f"--count={args.count} is not positive; give 1 or more",
        )
        find_checkpoint(args.source, DrawingSettings(**drawing).checkpoint)
        return
    require(
        args.source.is_dir(),
        f"RUN|PICTURES={args.source} is no folder; give a run folder or a folder of pictures",
    )
    names = [f"--{key}" for key in drawing] + ["--count"] * (args.count is not None)
    require(
        not names,
        f"{', '.join(names)} can only be used with a run folder, and {args.source} is none;"
        " leave it out, or give a run folder",
    )
    require(
        args.prompts != HELDOUT,
        f"--prompts=FILE is missing; give the prompts of the pictures in {args.source}",
    )
