"""Trains the generators by velocity matching, and judges what they draw."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from grpo_guard.world import captions, checker
from tiny.autoencoder import decode_latents, latent_pool
from tiny.fitting import Muon, fit
from tiny.generators import Generator, VelocityField
from tiny.pictures import DEVICE, Pool, save_sheet


@torch.no_grad()
def sample_latents(field: VelocityField, tokens: Tensor, *, steps: int, seed: int) -> Tensor:
    """Sample latents by Euler steps of the ODE over a shifted schedule."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(tokens), 16, 8, 8, generator=generator).to(DEVICE)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    for t, t_next in zip(scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True):
        x = x + (t_next - t).to(DEVICE) * field(x, t.expand(len(x)).to(DEVICE), tokens)
    return x


class Examples:
    """Latents and token ids to train a generator on: a noised batch for every step."""

    def __init__(
        self, work: Path, pool: Pool, vae: AutoencoderKL, model: Generator, batch: int
    ) -> None:
        self.pool = pool
        self.batch = batch
        self.latents = latent_pool(work, pool, vae)
        self.tokens = model.tokenize([prompt.text for prompt in pool.prompts])
        self.empty = model.tokenize([""])

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor, torch.Generator]:
        """Return noised latents, logit-normal times, velocities, token ids and a generator.

        The generator is the step's own, for whatever else the step draws.
        """
        generator = torch.Generator().manual_seed(step)
        rows = torch.from_numpy(self.pool.rows(step, self.batch)).to(DEVICE)
        x0 = self.latents[rows].float()
        x1 = torch.randn(x0.shape, generator=generator).to(DEVICE)
        t = torch.sigmoid(torch.randn(self.batch, generator=generator)).to(DEVICE)
        x = x0 + t.view(-1, 1, 1, 1) * (x1 - x0)
        return x, t, x1 - x0, self.tokens[rows], generator


class SampleJudge:
    """Measures how well a velocity field draws 128 held-out captions in 20 steps."""

    def __init__(
        self, work: Path, vae: AutoencoderKL, tokenize: Callable[[list[str]], Tensor]
    ) -> None:
        self.work = work
        self.vae = vae
        heldout = captions.all_prompts(heldout=True)
        self.prompts = captions.draw_captions(np.random.default_rng(5), 128, heldout)
        self.tokens = tokenize([prompt.text for prompt in self.prompts])
        self.is_word = torch.tensor([prompt.tag == "word" for prompt in self.prompts])

    def __call__(self, name: str, field: VelocityField) -> dict[str, float]:
        """Return mean scores, whose keys begin with `name`, and write a sheet of samples."""
        x = decode_latents(self.vae, sample_latents(field, self.tokens, steps=20, seed=11))
        pictures = (x / 2 + 0.5).clamp(0, 1).cpu().contiguous()
        check = checker.check_pictures(pictures, self.prompts)
        save_sheet(self.work / f"{name}samples.png", x[:64])
        scores = {
            "facts": check.facts,
            "exact": check.exact,
            "clean": check.clean,
            "words": check.exact[self.is_word],
        }
        return {f"{name}{key}": values.mean().item() for key, values in scores.items()}


def is_hidden(name: str) -> bool:
    """Return whether a parameter belongs to a hidden layer, which Muon trains."""
    return "transformer_blocks" in name or ".layers." in name or ".block." in name


def pretrain(
    name: str,
    work: Path,
    pool: Pool,
    vae: AutoencoderKL,
    model: Generator,
    *,
    steps: int,
    batch: int,
    lr: float,
) -> Generator:
    """Train by velocity matching, with 10 % of the captions left empty.

    Evaluations judge it without and with classifier-free guidance.
    """
    examples = Examples(work, pool, vae, model, batch)
    judge = SampleJudge(work, vae, model.tokenize)

    def loss(step: int) -> Tensor:
        x, t, v, tokens, generator = examples(step)
        drop = torch.rand(batch, 1, generator=generator).to(DEVICE) < 0.1
        return F.mse_loss(model(x, t, torch.where(drop, examples.empty, tokens)), v)

    def evaluate(average: Generator) -> dict[str, float]:
        return judge("", average) | judge("cfg3_", average.guided(3.0))

    return fit(
        name,
        work,
        model,
        loss,
        steps=steps,
        optimizer=Muon(model, is_hidden, lr),
        evaluate=evaluate,
        every=1000,
        ema=0.9995,
    )


def distil(
    work: Path,
    pool: Pool,
    vae: AutoencoderKL,
    teacher: Generator,
    *,
    steps: int,
    batch: int,
    lr: float,
) -> Generator:
    """Train a copy that takes the guidance scale, 1 to 5, as an input (arXiv:2210.03142)."""
    model = copy.deepcopy(teacher).requires_grad_(True)
    examples = Examples(work, pool, vae, model, batch)
    judge = SampleJudge(work, vae, model.tokenize)

    def loss(step: int) -> Tensor:
        x, t, _, tokens, generator = examples(step)
        scale = 1 + 4 * torch.rand(batch, generator=generator).to(DEVICE)
        with torch.no_grad():
            v, base = teacher(x, t, tokens), teacher(x, t, examples.empty.expand_as(tokens))
        return F.mse_loss(model(x, t, tokens, scale), base + scale.view(-1, 1, 1, 1) * (v - base))

    def evaluate(average: Generator) -> dict[str, float]:
        def embedded(x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
            return average(x, t, tokens, 3.5)

        return judge("", average) | judge("embedded35_", embedded)

    return fit(
        "flux_distilled",
        work,
        model,
        loss,
        steps=steps,
        optimizer=Muon(model, is_hidden, lr),
        evaluate=evaluate,
        every=500,
        ema=0.999,
    )
