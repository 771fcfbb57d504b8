"""Train the embedded checkpoints from scratch: python scripts/build_tiny.py [--work DIR] [--out DIR] [--stages ...]

Stages, each resumable from the last state saved in --work: an AutoencoderKL (`vae`); an SD3 (`sd3`) and a FLUX.1 with
embedded guidance (`flux`), each with its text encoders; two open_clip scorers (a `proxy` that knows few images and a
better one, trained apart, that serves as held-out `gold`); and a judgement of what was built. Uses a GPU when there is
one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from grpo_guard.backbone.flux import Flux
from grpo_guard.backbone.sd3 import SD3
from grpo_guard.final_steps.euler import Euler
from grpo_guard.pipeline.model import Checkpoint
from grpo_guard.rollout import rollout
from grpo_guard.sde import schedule
from grpo_guard.sde.ode import Ode
from grpo_guard.types import Batch, each
from grpo_guard.world import captions, checker
from tiny.autoencoder import build_vae
from tiny.fitting import console
from tiny.generators import FluxText, SD3Text, distil, pretrain, save
from tiny.pictures import DEVICE, Pool
from tiny.scorers import build_scorer, save_scorer
from tiny.tokens import T5_TOKENS, clip_tokenizer

STAGES = ["vae", "sd3", "flux", "proxy", "gold", "judge"]


def judge(recipe: Checkpoint, guidances: tuple[float, ...], count: int = 512) -> None:
    """Show how well a checkpoint draws held-out captions in 20 ODE steps, loaded as a run loads it."""
    prompts = tuple(captions.draw(np.random.default_rng(6), count, captions.prompts(heldout=True)))
    index = torch.arange(count, device=DEVICE)
    batch = Batch(prompts=prompts, group=index, sample=index, total=count)
    shown = Table(
        "guidance",
        "facts",
        "exact",
        "clean",
        "exact, words only",
        title=f"{count} held-out captions",
    )
    for guidance in guidances:
        model = replace(recipe, guidance=guidance).load(DEVICE)
        steps = each(schedule(Ode(), model.times(20)), lambda x: x.to(DEVICE))
        path = rollout(
            model.policy, steps, batch, model.encode([p.text for p in prompts]), model.shape,
            address=(0, 0), microbatch=64, final_steps=Euler(),
        )  # fmt: skip
        verdict = checker.check(model.decode(path.sample).cpu(), prompts)
        words = verdict.exact[torch.tensor([p.tag == "word" for p in prompts])]
        values = (verdict.facts, verdict.exact, verdict.clean, words)
        shown.add_row(f"{guidance:g}", *(f"{v.mean().item():.3f} ± {error(v):.3f}" for v in values))
    console.print(recipe.model, shown)


def error(values: Tensor) -> float:
    """The standard error of a mean."""
    return values.std().item() / len(values) ** 0.5


def recipe(kind: type[Checkpoint], folder: Path, t5_tokens: int) -> Checkpoint:
    """A checkpoint on disk in float32, without guidance."""
    return kind(
        model=str(folder), resolution=64, guidance=1.0, t5_tokens=t5_tokens, microbatch=64, lora=None,
        dtype="float32", vae_dtype="float32", text_dtype="float32", gradient_checkpointing=False, prompt_cache=None,
    )  # fmt: skip


def generators(args: argparse.Namespace) -> Iterator[str]:
    """The autoencoder and what draws its latents."""
    pool = Pool(args.images, 1)
    vae = build_vae(args.work, pool, args.vae_steps, args.batch // 4)
    yield "vae"
    asked = {"batch": args.batch, "lr": args.lr}
    if "sd3" in args.stages:
        torch.manual_seed(3)
        model = pretrain(
            "sd3", args.work, pool, vae, SD3Text().to(DEVICE), steps=args.sd3_steps, **asked
        )
        save(args.out / "sd3_tiny", vae, model)
        yield "sd3"
    if "flux" in args.stages:
        torch.manual_seed(3)
        model = pretrain(
            "flux", args.work, pool, vae, FluxText().to(DEVICE), steps=args.flux_steps, **asked
        )
        model = distil(
            args.work, pool, vae, model, steps=args.distil_steps, batch=args.batch, lr=args.lr / 3
        )
        save(args.out / "flux_tiny", vae, model)
        yield "flux"


def scorers(args: argparse.Namespace) -> Iterator[str]:
    """The proxy and the gold."""
    tokenizer = clip_tokenizer()
    for name, images, steps, seed in (
        ("proxy", args.proxy_images, args.proxy_steps, 21),
        ("gold", args.gold_images, args.gold_steps, 42),
    ):
        if name in args.stages:
            scorer = build_scorer(name, args.work, tokenizer, images=images, seed=seed, steps=steps)
            save_scorer(args.out / f"scorer_{name}", scorer, tokenizer)
            yield name


def stages(args: argparse.Namespace) -> Iterator[str]:
    """Run the stages asked for, naming each as it ends."""
    if {"vae", "sd3", "flux"} & set(args.stages):
        yield from generators(args)
    yield from scorers(args)
    if "judge" in args.stages:
        judge(recipe(SD3, args.out / "sd3_tiny", 0), (1.0, 3.0, 4.5))
        judge(recipe(Flux, args.out / "flux_tiny", T5_TOKENS), (1.0, 2.0, 3.5))
        yield "judge"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/build_tiny"), help="states and curves, for resuming"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("grpo_guard/assets"),
        help="where the checkpoints are written",
    )
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument(
        "--images", type=int, default=65_536, help="renders that the pipelines are trained on"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--lr", type=float, default=3e-3, help="of the transformers; a third of it to distil"
    )
    parser.add_argument("--vae-steps", type=int, default=3500)
    parser.add_argument("--sd3-steps", type=int, default=16_500)
    parser.add_argument("--flux-steps", type=int, default=8_500)
    parser.add_argument(
        "--distil-steps", type=int, default=1_500, help="of FLUX's guidance, after the others"
    )
    parser.add_argument("--proxy-images", type=int, default=400)
    parser.add_argument("--proxy-steps", type=int, default=750)
    parser.add_argument("--gold-images", type=int, default=40_960)
    parser.add_argument("--gold-steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    for stage in stages(args):
        console.print(f"done: {stage}")


if __name__ == "__main__":
    main()
