"""Drawing with a run's checkpoint, the base model beside it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import save_image

from grpo_guard import rng
from grpo_guard.backbone import Model
from grpo_guard.experiment import Experiment
from grpo_guard.final_steps.euler import Euler
from grpo_guard.report.samples import LARGEST
from grpo_guard.rollout import rollout
from grpo_guard.schema import record, require
from grpo_guard.sde import schedule
from grpo_guard.sde.ode import Ode
from grpo_guard.types import Batch, Prompt, map_tensors

Pictures = dict[str, Float[Tensor, "N 3 H W"]]
"""By the name of the model that has drawn them."""

LAST = "last"
BEST = "best"


@record
class Settings:
    """The checkpoint that draws, how many pictures of each prompt, in how many ODE steps, and the seed."""

    checkpoint: str = LAST
    each: int = 1
    steps: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("each", "steps"):
            require(getattr(self, key) > 0, f"--{key}={getattr(self, key)} is not positive")


def options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The settings on a command line, under a heading of their own."""
    found = parser.add_argument_group("drawing with a run's checkpoint")
    for key, kind, metavar, words in (
        ("checkpoint", str, "N", "after N iterations, best, or last"),
        ("each", int, "K", "pictures of each prompt"),
        ("steps", int, "N", "ODE steps"),
        ("seed", int, "N", "of everything that is drawn at random"),
    ):
        words += f" (default: {getattr(Settings, key)})"
        found.add_argument(f"--{key}", type=kind, metavar=metavar, help=words)
    return found


def told(given: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given."""
    found = {field.name: getattr(given, field.name) for field in fields(Settings)}
    return {key: value for key, value in found.items() if value is not None}


def device_option(parser: argparse.ArgumentParser) -> None:
    """What `device` reads, on a command line."""
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N (default: auto)"
    )


def device(name: str) -> torch.device:
    """A device, or the one that `auto` means; raises ConfigError for one that is not here."""
    here = [
        "cpu",
        *(["cuda"] * torch.cuda.is_available()),
        *(f"cuda:{i}" for i in range(torch.cuda.device_count())),
    ]
    require(
        name in ("auto", *here), f"--device={name} is not here; choose from auto, {', '.join(here)}"
    )
    return torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    )


def checkpoint(run: Path, which: str) -> Path:
    """The folder of a checkpoint: after so many iterations, the last or the best; ConfigError where it is not there."""
    folder = run / "checkpoints"
    numbered = {int(path.name): path for path in folder.glob("*") if path.name.isdigit()}
    found = {str(number): path for number, path in sorted(numbered.items())}
    found |= {BEST: folder / BEST} if (folder / BEST).is_dir() else {}
    found |= {LAST: numbered[max(numbered)]} if numbered else {}
    require(bool(found), f"{run} has no checkpoint; give a run folder that has checkpoints/")
    key = str(int(which)) if which.isdigit() else which
    require(key in found, f"--checkpoint={which} is not there; choose from {', '.join(found)}")
    return found[key]


def label(folder: Path) -> str:
    """How a checkpoint is called on a page."""
    return f"iteration {int(folder.name)}" if folder.name.isdigit() else folder.name


def base_and_tuned(
    exp: Experiment, folder: Path, texts: Sequence[str], where: torch.device, steps: int, seed: int
) -> Pictures:
    """One ODE sample of each text by the model as it was loaded, and by a checkpoint from the same noise."""
    torch.manual_seed(rng.key(exp.seed, "initialisation"))
    model = exp.backbone.load(where)
    base = pictures(model, texts, exp.microbatch, steps, seed, "base")
    model.restore(folder)
    return {"base": base, "tuned": pictures(model, texts, exp.microbatch, steps, seed, "tuned")}


@torch.no_grad()
def pictures(
    model: Model, texts: Sequence[str], microbatch: int, steps: int, seed: int, name: str
) -> Float[Tensor, "N 3 H W"]:
    """One ODE sample of each text, on the CPU; the noise is that of the text's row."""
    plan = map_tensors(
        schedule(Ode(), model.times(steps)), lambda x: x.to(next(model.policy.parameters()).device)
    )
    found = []
    for rows in track(
        torch.arange(len(texts)).split(microbatch), name, console=Console(stderr=True)
    ):
        here = [texts[row] for row in rows.tolist()]
        asked = tuple(Prompt(text=text) for text in here)
        batch = Batch(prompts=asked, group=torch.arange(len(here)), sample=rows, total=len(texts))
        batch, condition = map_tensors(batch, lambda x: x.to(plan.t.device)), model.encode(here)
        path = rollout(
            model.policy, plan, batch, condition, model.shape,
            address=(seed, 0), microbatch=microbatch, final_steps=Euler(),
        )  # fmt: skip
        found.append(model.decode(path.sample).cpu())
    return torch.cat(found)


def keep(out: Path, found: Pictures) -> None:
    """Write every picture into the folder of its model."""
    for name, images in found.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        for row, image in enumerate(images):
            save_image(image, out / name / file(row))


def file(row: int) -> str:
    """The name of a picture."""
    return f"{row:04d}.png"


def tiles(images: Float[Tensor, "N 3 H W"]) -> UInt8[ndarray, "N S S 3"]:
    """Pictures for a page, none larger than it can use."""
    share = LARGEST / max(images.shape[2:])
    small = F.interpolate(images, scale_factor=share, mode="area") if share < 1 else images
    return (small.movedim(1, 3) * 255).round().byte().numpy()
