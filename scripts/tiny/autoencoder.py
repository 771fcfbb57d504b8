"""The autoencoder of the embedded checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from rich.progress import track
from torch import Tensor, nn

from grpo_guard.pipeline.encoding import fingerprint
from grpo_guard.world import checker
from tiny.fitting import adamw, fit
from tiny.pictures import DEVICE, Pool, render_captions, save_sheet, to_pixels


def new_vae() -> AutoencoderKL:
    """Make an autoencoder from 64 x 64 x 3 to 8 x 8 x 16 (D = 1024).

    Its top layers are narrow, so that decoding is cheap.
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 64),
        layers_per_block=1,
        latent_channels=16,
        # With more groups, the few channels of the top layers would be normalised one by one, and
        # colour would be lost.
        norm_num_groups=1,
        sample_size=64,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return vae.to(DEVICE, memory_format=torch.channels_last)


def build_vae(work: Path, pool: Pool, steps: int, batch: int) -> AutoencoderKL:
    """Train the autoencoder.

    Three quarters of the steps see crops of a quarter of the area, which are four times as cheap;
    the last quarter sees whole pictures. At the end, the mean and scale of the latents are written
    into the configuration.
    """
    vae = new_vae()
    prompts, images = render_captions(1, 256, heldout=True)

    def loss(step: int) -> Tensor:
        pictures = pool.images[pool.rows(step, batch)]
        if step < 0.75 * steps:
            pictures = crop(pictures, step)
        return vae_loss(vae, to_pixels(np.ascontiguousarray(pictures)), step)

    @torch.no_grad()
    def evaluate(average: nn.Module) -> dict[str, float]:
        x = to_pixels(images)
        y = average.decode(average.encode(x).latent_dist.mean).sample
        decoded = (y.float() / 2 + 0.5).clamp(0, 1).cpu().contiguous()
        check = checker.check_pictures(decoded, prompts)
        save_sheet(work / "vae.png", torch.stack([x[:16], y[:16]], 1).flatten(0, 1))
        return {
            "l1": F.l1_loss(y, x).item(),
            "exact": check.exact.mean().item(),
            "facts": check.facts.mean().item(),
        }

    optimizer = adamw(vae, 2e-3)
    vae = fit(
        "vae", work, vae, loss, steps=steps, optimizer=optimizer, evaluate=evaluate, every=500
    )
    return write_latent_scale(vae.eval(), pool)


def crop(pictures: np.ndarray, step: int) -> np.ndarray:
    """Cut the same 32 x 32 px out of all pictures (N, 64, 64, 3); the step decides where."""
    top, left = np.random.default_rng([8, step]).integers(0, 33, 2)
    return pictures[:, top : top + 32, left : left + 32]


def vae_loss(vae: AutoencoderKL, x: Tensor, step: int) -> Tensor:
    """Return the error of the decoded pictures, plus a little of the latents' KL divergence."""
    posterior = vae.encode(x).latent_dist
    generator = torch.Generator().manual_seed(step)
    noise = torch.randn(posterior.mean.shape, generator=generator).to(DEVICE)
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    decoded = vae.decode(posterior.mean + posterior.std * noise).sample
    return picture_loss(decoded, x) + 1e-5 * kl


def picture_loss(y: Tensor, x: Tensor) -> Tensor:
    """Return absolute and squared error, plus the error of the colour alone.

    Without the last term, colour is what the autoencoder learns last.
    """
    chroma = F.l1_loss(y - y.mean(1, keepdim=True), x - x.mean(1, keepdim=True))
    return F.l1_loss(y, x) + F.mse_loss(y, x) + 2 * chroma


def write_latent_scale(vae: AutoencoderKL, pool: Pool) -> AutoencoderKL:
    """Measure mean and scale of the latents, and write them into the configuration."""
    latents = encode_images(vae, pool.images[:2048]).float()
    vae.register_to_config(
        scaling_factor=round(1 / latents.std().item(), 4),
        shift_factor=round(latents.mean().item(), 4),
    )
    return vae


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: np.ndarray) -> Tensor:
    """Return unscaled posterior means, float16 (N, 16, 8, 8)."""
    parts = [
        vae.encode(to_pixels(images[i : i + 128])).latent_dist.mean.half()
        for i in track(range(0, len(images), 128), "encoding")
    ]
    return torch.cat(parts).contiguous()


def latent_pool(work: Path, pool: Pool, vae: AutoencoderKL) -> Tensor:
    """Return scaled latents of the whole pool.

    They are kept in `work`, in a file of their own for each autoencoder and number of pictures.
    """
    file = work / f"latents_{len(pool.images)}_{fingerprint({'vae': vae}, '')[:12]}.pt"
    if not file.exists():
        torch.save(encode_images(vae, pool.images), file)
    latents = torch.load(file, map_location=DEVICE)
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode scaled latents to pictures (N, 3, 64, 64) in [-1, 1], 64 at a time."""
    scaled = latents / vae.config.scaling_factor + vae.config.shift_factor
    return torch.cat([vae.decode(z).sample for z in scaled.split(64)])
