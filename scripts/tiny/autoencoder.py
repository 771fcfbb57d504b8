"""The autoencoder of the embedded checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from rich.progress import track
from torch import Tensor, nn

from grpo_guard.world import checker
from tiny.fitting import adamw, fit
from tiny.pictures import DEVICE, Pool, draw, pixels, sheet


def new_vae() -> AutoencoderKL:
    """Three halvings: 64 x 64 x 3 -> 8 x 8 x 16 (D = 1024); its top layers are narrow so that decoding is cheap."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=1,  # more groups would normalise the few channels of the top layers one by one, and lose colour
        sample_size=64,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return vae.to(DEVICE, memory_format=torch.channels_last)


def build_vae(work: Path, pool: Pool, steps: int, batch: int) -> AutoencoderKL:
    """Trained on quarter crops for three quarters of the steps, which are four times as cheap, then on whole images.

    The latents' mean and scale are measured at the end and written into its configuration.
    """
    vae, (prompts, images) = new_vae(), draw(1, 256, heldout=True)

    def loss(step: int) -> Tensor:
        shown = pool.images[pool.rows(step, batch)]
        if step < 0.75 * steps:
            top, left = np.random.default_rng([8, step]).integers(0, 33, 2)
            shown = shown[:, top : top + 32, left : left + 32]
        x = pixels(np.ascontiguousarray(shown))
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step)).to(
            DEVICE
        )
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return (
            picture_loss(vae.decode(posterior.mean + posterior.std * noise).sample, x) + 1e-5 * kl
        )

    @torch.no_grad()
    def evaluate(average: nn.Module) -> dict[str, float]:
        x = pixels(images)
        y = average.decode(average.encode(x).latent_dist.mean).sample
        verdict = checker.check((y.float() / 2 + 0.5).clamp(0, 1).cpu().contiguous(), prompts)
        sheet(work / "vae.png", torch.stack([x[:16], y[:16]], 1).flatten(0, 1))
        return {
            "l1": F.l1_loss(y, x).item(),
            "exact": verdict.exact.mean().item(),
            "facts": verdict.facts.mean().item(),
        }

    vae = fit(
        "vae",
        work,
        vae,
        loss,
        steps=steps,
        optimizer=adamw(vae, 2e-3),
        evaluate=evaluate,
        every=500,
    ).eval()
    mean = encode(vae, pool.images[:2048]).float()
    vae.register_to_config(
        scaling_factor=round(1 / mean.std().item(), 4), shift_factor=round(mean.mean().item(), 4)
    )
    return vae


def picture_loss(y: Tensor, x: Tensor) -> Tensor:
    """Absolute and squared error, and the error of the colour apart: left to itself, colour is learned last."""
    chroma = F.l1_loss(y - y.mean(1, keepdim=True), x - x.mean(1, keepdim=True))
    return F.l1_loss(y, x) + F.mse_loss(y, x) + 2 * chroma


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray) -> Tensor:
    """Unscaled posterior means, float16 (N, 16, 8, 8)."""
    parts = [
        vae.encode(pixels(images[i : i + 128])).latent_dist.mean.half()
        for i in track(range(0, len(images), 128), "encoding")
    ]
    return torch.cat(parts).contiguous()


def latent_pool(work: Path, pool: Pool, vae: AutoencoderKL) -> Tensor:
    """Scaled latents of the whole pool, kept in `work`."""
    file = work / "latents.pt"
    if not file.exists():
        torch.save(encode(vae, pool.images), file)
    latents = torch.load(file, map_location=DEVICE)
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def decoded(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Images (N, 3, 64, 64) in [-1, 1] of scaled latents, a few at a time."""
    scaled = latents / vae.config.scaling_factor + vae.config.shift_factor
    return torch.cat([vae.decode(z).sample for z in scaled.split(64)])
