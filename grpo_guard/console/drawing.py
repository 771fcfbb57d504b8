"""Draw pictures with a run's checkpoint, and with its base model from the same noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
from grpo_guard.console.options import DrawingSettings
from grpo_guard.data.geneval import GENEVAL_RELATIONS
from grpo_guard.diagnostics.memory import explain_shortage
from grpo_guard.experiment import Experiment
from grpo_guard.final_steps.euler import Euler
from grpo_guard.keys import name_key
from grpo_guard.parallel.kernels import keep_float32
from grpo_guard.pixels import to_8_bit
from grpo_guard.report.figures.samples import MAX_PIXELS
from grpo_guard.rollout import rollout
from grpo_guard.schema import require
from grpo_guard.sde import schedule
from grpo_guard.sde.ode import Ode
from grpo_guard.types import Batch, Clause, Prompt, map_tensors

PicturesByModel = dict[str, Float[Tensor, "N 3 H W"]]
"""Pictures in [0, 1] by the name of the model that drew them, such as "base" and "tuned"."""

PROMPTS = "prompts.jsonl"
"""The file beside the folders of pictures that holds their prompts."""


def choose_device(name: str) -> torch.device:
    """Return the named device, or the best one for "auto"; float32 is then computed in float32.

    Raises ConfigError if the device is missing.
    """
    has_cuda = torch.cuda.is_available()
    devices = ["cpu"]
    if has_cuda:
        devices += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    require(
        name in ("auto", *devices),
        f"--device={name} is not here; choose from auto, {', '.join(devices)}",
    )
    keep_float32()
    best = "cuda" if has_cuda else "cpu"
    return torch.device(best if name == "auto" else name)


def draw_base_and_tuned(
    exp: Experiment,
    checkpoint: Path,
    texts: Sequence[str],
    device: torch.device,
    settings: DrawingSettings,
) -> PicturesByModel:
    """Draw one picture of each text with the base model and with a checkpoint.

    Both start from the same noise.
    """
    # weights that a backbone initialises at random must be those that the run began with
    torch.manual_seed(rng.key(exp.seed, "initialisation"))
    with explain_shortage(device, "drawing"):
        model = exp.backbone.load(device)
        drawn = resize(model, exp, settings)
        base = draw_texts(drawn, texts, exp.batch_sizes.microbatch, settings, "base")
        model.restore(checkpoint)
        tuned = draw_texts(drawn, texts, exp.batch_sizes.microbatch, settings, "tuned")
    return {"base": base, "tuned": tuned}


def resize(model: Model, exp: Experiment, settings: DrawingSettings) -> Model:
    """Return the model at the resolution of the settings, else at that of the run's evaluations."""
    resolution = settings.resolution or exp.eval.cost.resolution
    if resolution is None:
        return model
    with name_key("--"):
        return model.at(resolution)


@torch.no_grad()
def draw_texts(
    model: Model, texts: Sequence[str], microbatch: int, settings: DrawingSettings, name: str
) -> Float[Tensor, "N 3 H W"]:
    """Draw one picture of each text in ODE steps, and return them in [0, 1] on the CPU.

    The noise of a picture depends on its row and the seed alone.
    """
    device = next(model.policy.parameters()).device
    plan = map_tensors(schedule(Ode(), model.times(settings.steps)), lambda x: x.to(device))
    images = []
    microbatches = torch.arange(len(texts)).split(microbatch)
    for rows in track(microbatches, name, console=Console(stderr=True)):
        own_texts = [texts[row] for row in rows.tolist()]
        batch = Batch(
            prompts=tuple(Prompt(text=text) for text in own_texts),
            group=torch.arange(len(own_texts)),
            sample=rows,
            total=len(texts),
        )
        batch = map_tensors(batch, lambda x: x.to(device))
        trajectory = rollout(
            model.policy, plan, batch, model.encode(own_texts), model.shape,
            address=(settings.seed, 0), microbatch=microbatch, final_steps=Euler(),
        )  # fmt: skip
        images.append(model.decode(trajectory.sample).cpu())
    return torch.cat(images)


def save_pictures(out: Path, pictures: PicturesByModel) -> None:
    """Write every picture into the folder of its model."""
    for name, images in pictures.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        for row, image in enumerate(images):
            save_image(image, out / name / picture_name(row))


def write_prompts(out: Path, prompts: Sequence[Prompt], each: int) -> None:
    """Write prompts.jsonl, which evaluate.py and calibrate_geneval.py read with the pictures.

    It has one line per prompt, each of which has `each` pictures in a row.
    """
    lines = [json.dumps(describe_prompt(prompt), ensure_ascii=False) for prompt in prompts[::each]]
    (out / PROMPTS).write_text("\n".join(lines) + "\n", encoding="utf-8")


def describe_prompt(prompt: Prompt) -> dict[str, Any]:
    """Return what a line of prompts.jsonl holds: GenEval's keys if they can express its demands.

    Captions of the synthetic world that demand more are recognised by their text.
    """
    demands = (*prompt.include, *prompt.exclude)
    relations = {clause.position[0] for clause in demands if clause.position}
    has_text = any(clause.text for clause in demands)
    if not prompt.include or has_text or not relations <= {*GENEVAL_RELATIONS}:
        return {"prompt": prompt.text}
    clauses = {
        key: [describe_clause(clause) for clause in getattr(prompt, key)]
        for key in ("include", "exclude")
    }
    return {"tag": prompt.tag, **clauses, "prompt": prompt.text}


def describe_clause(clause: Clause) -> dict[str, Any]:
    """Return a clause as in GenEval's metadata, without what it leaves open."""
    values = {
        "class": clause.name,
        "count": clause.count,
        "color": clause.color,
        "position": clause.position,
    }
    return {key: value for key, value in values.items() if value is not None}


def picture_name(row: int) -> str:
    """Return the file name of a picture."""
    return f"{row:04d}.png"


def make_tiles(images: Float[Tensor, "N 3 H W"]) -> UInt8[ndarray, "N S S 3"]:
    """Return pictures for a page, at most `MAX_PIXELS` wide and high."""
    scale = MAX_PIXELS / max(images.shape[2:])
    small = F.interpolate(images, scale_factor=scale, mode="area") if scale < 1 else images
    return to_8_bit(small).movedim(1, 3).numpy()
