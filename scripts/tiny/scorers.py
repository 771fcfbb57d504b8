"""The scorers: contrastive image-text models in open_clip's format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTokenizer

from tiny.fitting import adamw, fit
from tiny.pictures import DEVICE, Pool, draw, pixels
from tiny.tokens import CONTEXT
from tiny.tokens import ids as tokenize


def scorer_config(vocabulary: int) -> dict[str, object]:
    """open_clip configuration of a small ViT and a small text transformer."""
    text = {
        "context_length": CONTEXT,
        "vocab_size": vocabulary,
        "width": 64,
        "heads": 4,
        "layers": 2,
    }
    vision = {
        "image_size": 64,
        "patch_size": 8,
        "width": 96,
        "layers": 4,
        "head_width": 24,
        "mlp_ratio": 2.0,
    }
    return {
        "embed_dim": 64,
        "vision_cfg": vision,
        "text_cfg": {**text, "eos_id": vocabulary - 1, "pool_type": "argmax"},
    }


def build_scorer(
    name: str,
    work: Path,
    tokenizer: CLIPTokenizer,
    *,
    images: int,
    seed: int,
    steps: int,
    batch: int = 96,
) -> nn.Module:
    """A contrastive image-text scorer trained on `images` renders of its own."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**scorer_config(len(tokenizer))).to(DEVICE)
    pool = Pool(images, seed)
    ids = tokenize(tokenizer, [p.text for p in pool.prompts])
    texts = np.array([p.text for p in pool.prompts])
    prompts, pictures = draw(seed + 1, 512, heldout=True)
    heldout, shown = tokenize(tokenizer, [p.text for p in prompts]), pixels(pictures)
    other = torch.from_numpy(np.random.default_rng(0).permutation(512)).to(DEVICE)
    differs = torch.tensor(
        [a.text != prompts[i].text for a, i in zip(prompts, other.tolist(), strict=True)]
    )

    def loss(step: int) -> Tensor:
        rows = pool.rows(step, batch)
        shift = np.random.default_rng([9, step]).integers(-3, 4, 2)
        image = pixels(np.roll(pool.images[rows], shift, (1, 2)))
        a, b, scale = model(image, ids[torch.from_numpy(rows).to(DEVICE)])[:3]
        same = torch.from_numpy(texts[rows][:, None] == texts[rows][None]).float().to(DEVICE)
        logits, target = scale * a @ b.T, same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    @torch.no_grad()
    def evaluate(average: nn.Module) -> dict[str, float]:
        a, b, _ = average(shown, heldout)[:3]
        wins = ((a * b).sum(1) > (a * b[other]).sum(1)).cpu()[differs]
        return {"pairs": wins.float().mean().item()}

    return fit(
        name,
        work,
        model,
        loss,
        steps=steps,
        optimizer=adamw(model, 1e-3),
        evaluate=evaluate,
        every=250,
        ema=0.99,
    )


def save_scorer(folder: Path, model: nn.Module, tokenizer: CLIPTokenizer) -> None:
    """Write a scorer as open_clip reads it (`local-dir:`): configuration, float16 weights, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = scorer_config(len(tokenizer))
    config["text_cfg"] = {**config["text_cfg"], "hf_tokenizer_name": "."}  # type: ignore[dict-item]
    half = {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": half}, indent=2)
    )
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)
