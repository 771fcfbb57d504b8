"""Trains the embedded checkpoints: python scripts/build_tiny.py [--work DIR] [--stages vae sd3 ...]

The stages are an autoencoder (vae), an SD3 (sd3) and a FLUX.1 with embedded guidance (flux), each
with its text encoders, and four open_clip scorers: a proxy that has seen few pictures, two worse
ones (quarter saw a quarter of them, terse saw captions that leave things out), and a better one,
trained separately, that serves as the held-out gold. The last stages (judge, judge_scorers) measure
the result. Each stage resumes from the last state in --work. A GPU is used if there is one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from grpo_guard.backbone.flux import Flux
from grpo_guard.backbone.sd3 import SD3
from grpo_guard.final_steps.euler import Euler
from grpo_guard.pipeline.recipe import PipelineRecipe
from grpo_guard.rollout import rollout
from grpo_guard.sde import schedule
from grpo_guard.sde.ode import Ode
from grpo_guard.types import Batch, Prompt, map_tensors
from grpo_guard.world import captions, checker
from tiny.autoencoder import build_vae
from tiny.fitting import console
from tiny.generators import FluxText, SD3Text, save_pipeline
from tiny.judging import MEASURES, make_shipped_rewards
from tiny.pictures import DEVICE, Pool
from tiny.scorers import build_scorer, save_scorer
from tiny.tokens import T5_TOKENS, clip_tokenizer
from tiny.velocity import distil, pretrain

STAGES = [
    "vae", "sd3", "flux", "proxy", "quarter", "terse", "gold", "judge", "judge_scorers",
]  # fmt: skip


def judge(recipe: PipelineRecipe, guidances: tuple[float, ...], count: int = 512) -> None:
    """Print how well a checkpoint draws held-out captions in 20 ODE steps.

    The checkpoint is loaded in the same way as a run loads it.
    """
    heldout = captions.all_prompts(heldout=True)
    prompts = tuple(captions.draw_captions(np.random.default_rng(6), count, heldout))
    is_word = torch.tensor([prompt.tag == "word" for prompt in prompts])
    columns = ("guidance", "facts", "exact", "clean", "exact, words only")
    table = Table(*columns, title=f"{count} held-out captions")
    for guidance in guidances:
        pictures = draw_samples(replace(recipe, guidance=guidance), prompts)
        check = checker.check_pictures(pictures, prompts)
        scores = (check.facts, check.exact, check.clean, check.exact[is_word])
        cells = [f"{score.mean().item():.3f} ± {standard_error(score):.3f}" for score in scores]
        table.add_row(f"{guidance:g}", *cells)
    console.print(recipe.model, table)


def judge_scorers(folder: Path) -> None:
    """Print how often each scorer of a folder, and GenEval, is right on held-out captions."""
    table = Table("scorer", *MEASURES, title="how often a scorer is right on held-out captions")
    for name, reward in make_shipped_rewards(folder).items():
        shares = [measure(reward).float() for measure in MEASURES.values()]
        cells = [f"{share.mean().item():.3f} ± {standard_error(share):.3f}" for share in shares]
        table.add_row(name, *cells)
    console.print(table)


def draw_samples(recipe: PipelineRecipe, prompts: tuple[Prompt, ...]) -> Tensor:
    """Draw one picture (3, 64, 64) in [0, 1] of each prompt."""
    model = recipe.load(DEVICE)
    index = torch.arange(len(prompts), device=DEVICE)
    path = rollout(
        model.policy,
        map_tensors(schedule(Ode(), model.times(20)), lambda x: x.to(DEVICE)),
        Batch(prompts=prompts, group=index, sample=index, total=len(prompts)),
        model.encode([prompt.text for prompt in prompts]),
        model.shape,
        address=(0, 0),
        microbatch=64,
        final_steps=Euler(),
    )
    return model.decode(path.sample).cpu()


def standard_error(values: Tensor) -> float:
    """Return the standard error of the mean."""
    return values.std().item() / len(values) ** 0.5


def make_recipe(kind: type[Flux] | type[SD3], folder: Path, t5_tokens: int) -> PipelineRecipe:
    """Return the settings of a built checkpoint, in float32 and without guidance."""
    return kind(
        model=str(folder),
        resolution=64,
        guidance=1.0,
        t5_tokens=t5_tokens,
        microbatch=64,
        lora=None,
        dtype="float32",
        vae_dtype="float32",
        text_dtype="float32",
        gradient_checkpointing=False,
        prompt_cache=None,
    )


def build_generators(args: argparse.Namespace) -> Iterator[str]:
    """Train the autoencoder and the generators of its latents; yield each stage as it ends."""
    pool = Pool(args.images, 1)
    vae = build_vae(args.work, pool, args.vae_steps, args.batch // 4)
    yield "vae"
    data = (args.work, pool, vae)
    settings = {"batch": args.batch, "lr": args.lr}
    if "sd3" in args.stages:
        torch.manual_seed(3)
        sd3 = pretrain("sd3", *data, SD3Text().to(DEVICE), steps=args.sd3_steps, **settings)
        save_pipeline(args.out / "sd3_tiny", vae, sd3)
        yield "sd3"
    if "flux" in args.stages:
        torch.manual_seed(3)
        flux = pretrain("flux", *data, FluxText().to(DEVICE), steps=args.flux_steps, **settings)
        flux = distil(*data, flux, steps=args.distil_steps, batch=args.batch, lr=args.lr / 3)
        save_pipeline(args.out / "flux_tiny", vae, flux)
        yield "flux"


def build_scorers(args: argparse.Namespace) -> Iterator[str]:
    """Train the proxies and the gold; yield each stage as it ends."""
    tokenizer = clip_tokenizer()
    proxy = {"steps": args.proxy_steps, "seed": 21, "describe": attrgetter("text")}
    few = args.proxy_images
    for name, settings in {
        "proxy": {**proxy, "images": few},
        "quarter": {**proxy, "images": few // 4},
        "terse": {**proxy, "images": few, "describe": captions.describe_first},
        "gold": {**proxy, "images": args.gold_images, "steps": args.gold_steps, "seed": 42},
    }.items():
        if name in args.stages:
            scorer = build_scorer(name, args.work, tokenizer, **settings)
            save_scorer(args.out / f"scorer_{name}", scorer, tokenizer)
            yield name


def run_stages(args: argparse.Namespace) -> Iterator[str]:
    """Run the chosen stages; yield each as it ends."""
    if {"vae", "sd3", "flux"} & set(args.stages):
        yield from build_generators(args)
    yield from build_scorers(args)
    if "judge" in args.stages:
        judge(make_recipe(SD3, args.out / "sd3_tiny", 0), (1.0, 3.0, 4.5))
        judge(make_recipe(Flux, args.out / "flux_tiny", T5_TOKENS), (1.0, 2.0, 3.5))
        yield "judge"
    if "judge_scorers" in args.stages:
        judge_scorers(args.out)
        yield "judge_scorers"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    form = argparse.ArgumentDefaultsHelpFormatter
    line = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    folder = {"type": Path, "metavar": "DIR"}
    number = {"type": int, "metavar": "N"}
    line.add_argument("--work", **folder, default=Path("runs/build_tiny"), help="states and curves")
    line.add_argument(
        "--out", **folder, default=Path("grpo_guard/assets"), help="where to write the checkpoints"
    )
    line.add_argument(
        # without a metavar, argparse names all choices twice in one line
        "--stages", nargs="+", default=STAGES, choices=STAGES, metavar="STAGE",
        help="what to do: all of these, or some",
    )  # fmt: skip
    line.add_argument(
        "--images", **number, default=65_536, help="renders to train the pipelines on"
    )
    line.add_argument("--batch", **number, default=64, help="pictures per step")
    line.add_argument(
        "--lr", type=float, default=3e-3, help="learning rate of the transformers; distil: a third"
    )
    for name, steps, what in (
        ("vae", 3_500, "the autoencoder"),
        ("sd3", 16_500, "SD3"),
        ("flux", 8_500, "FLUX.1"),
        ("distil", 1_500, "FLUX.1's embedded guidance, after the others"),
        ("proxy", 750, "the proxies"),
        ("gold", 1_000, "the gold"),
    ):
        line.add_argument(f"--{name}-steps", **number, default=steps, help=f"steps of {what}")
    line.add_argument("--proxy-images", **number, default=400, help="renders for proxy and terse")
    line.add_argument("--gold-images", **number, default=40_960, help="renders for the gold")
    line.add_argument("--threads", **number, default=None, help="CPU threads of torch")
    return line


def main() -> None:
    args = make_parser().parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    for stage in run_stages(args):
        console.print(f"done: {stage}")


if __name__ == "__main__":
    main()
