"""The scorers: contrastive models of pictures and texts in open_clip's format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from grpo_guard.types import Prompt
from tiny.fitting import adamw, fit
from tiny.pictures import DEVICE, Pool, render_captions, to_pixels
from tiny.tokens import CONTEXT, token_ids

BATCH = 96

Describe = Callable[[Prompt], str]
"""The caption that a scorer sees of a picture that was made for a prompt."""


def scorer_config(vocabulary: int) -> dict[str, object]:
    """Return open_clip's configuration of a small ViT and a small text transformer."""
    text = {
        "context_length": CONTEXT,
        "vocab_size": vocabulary,
        "width": 64,
        "heads": 4,
        "layers": 2,
        "eos_id": vocabulary - 1,
        "pool_type": "argmax",
    }
    vision = {
        "image_size": 64,
        "patch_size": 8,
        "width": 96,
        "layers": 4,
        "head_width": 24,
        "mlp_ratio": 2.0,
    }
    return {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}


def build_scorer(
    name: str,
    work: Path,
    tokenizer: CLIPTokenizer,
    *,
    images: int,
    seed: int,
    steps: int,
    describe: Describe,
) -> nn.Module:
    """Train a scorer on `images` renders of its own, each with its description."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**scorer_config(len(tokenizer))).to(DEVICE)
    return fit(
        name,
        work,
        model,
        contrastive_loss(model, Pool(images, seed), tokenizer, describe),
        steps=steps,
        optimizer=adamw(model, 1e-3),
        evaluate=pair_accuracy(tokenizer, seed + 1),
        every=250,
        ema=0.99,
    )


def contrastive_loss(
    model: nn.Module, pool: Pool, tokenizer: CLIPTokenizer, describe: Describe
) -> Callable[[int], Tensor]:
    """Return the loss of a step; equal captions in a batch share the target."""
    captions = [describe(prompt) for prompt in pool.prompts]
    ids = token_ids(tokenizer, captions)
    texts = np.array(captions)

    def loss(step: int) -> Tensor:
        rows = pool.rows(step, BATCH)
        shift = np.random.default_rng([9, step]).integers(-3, 4, 2)
        image = to_pixels(np.roll(pool.images[rows], shift, (1, 2)))
        a, b, scale = model(image, ids[torch.from_numpy(rows).to(DEVICE)])[:3]
        same = torch.from_numpy(texts[rows][:, None] == texts[rows][None]).float().to(DEVICE)
        logits, target = scale * a @ b.T, same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    return loss


def pair_accuracy(tokenizer: CLIPTokenizer, seed: int) -> Callable[[nn.Module], dict[str, float]]:
    """Return a function that tests how often a picture prefers its caption to another one."""
    prompts, images = render_captions(seed, 512, heldout=True)
    ids = token_ids(tokenizer, [prompt.text for prompt in prompts])
    pictures = to_pixels(images)
    other = torch.from_numpy(np.random.default_rng(0).permutation(512)).to(DEVICE)
    differs = torch.tensor(
        [a.text != prompts[i].text for a, i in zip(prompts, other.tolist(), strict=True)]
    )

    @torch.no_grad()
    def evaluate(average: nn.Module) -> dict[str, float]:
        a, b, _ = average(pictures, ids)[:3]
        wins = ((a * b).sum(1) > (a * b[other]).sum(1)).cpu()[differs]
        return {"pairs": wins.float().mean().item()}

    return evaluate


def save_scorer(folder: Path, model: nn.Module, tokenizer: CLIPTokenizer) -> None:
    """Write a scorer as open_clip's `local-dir:` wants it: configuration, weights, tokenizer.

    The weights are in float16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = scorer_config(len(tokenizer))
    config["text_cfg"] = {**config["text_cfg"], "hf_tokenizer_name": "."}  # type: ignore[dict-item]
    preprocessing = {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing}, indent=2)
    )
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)
