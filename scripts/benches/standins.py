"""Random weights in the formats and sizes of published scorers, for timing where the published ones are not at hand."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
)

from grpo_guard.reward import aesthetic, image_reward
from grpo_guard.reward.mask2former import NAMES

SPREAD = 0.02  # standard deviation of the weights
BLOCK = 2**20  # numbers drawn, and then repeated


def pickscore_v1(folder: Path) -> str:
    """transformers' CLIP ViT-H/14."""
    vision = {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
    }
    text = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    }
    config = CLIPConfig(
        vision_config={**vision, "patch_size": 14, "hidden_act": "gelu"},
        text_config={**text, "hidden_act": "gelu"},
        projection_dim=1024,
    )
    with torch.device("meta"):
        save_file(
            noise(CLIPModel(config).state_dict()), folder / "model.safetensors", {"format": "pt"}
        )
    config.save_pretrained(folder)
    return f"model={folder}"


def hpsv2(folder: Path) -> str:
    """open_clip's ViT-H/14."""
    torch.save({"state_dict": clip("ViT-H-14")}, folder / "HPS_v2.1_compressed.pt")
    return f"model={folder}"


def clipscore(folder: Path) -> str:
    """OpenAI's ViT-L/14."""
    save_file(clip("ViT-L-14-quickgelu"), folder / "open_clip_model.safetensors")
    return f"model={folder}"


def diversity_photos(folder: Path) -> str:
    """The same, in another place of the settings."""
    return f"clip.{clipscore(folder)}"


def score_of_aesthetics(folder: Path) -> str:
    """A regression beside it."""
    state = {
        f"layers.{key}": value
        for key, value in aesthetic.head(aesthetic.WIDTH).state_dict().items()
    }
    torch.save(state, folder / aesthetic.FILE)
    return f"model={folder} clip.{clipscore(folder)}"


def score_of_people(folder: Path) -> str:
    """BLIP under its published names, and a vocabulary of as many words as BERT's."""
    with torch.device("meta"):
        ours = image_reward.Blip().state_dict()
    pairs = [(new, old) for old, new in reversed(image_reward._RENAMED.items())]
    published = {
        reduce(lambda name, pair: name.replace(*pair), pairs, key): value
        for key, value in ours.items()
    }
    torch.save(noise(published), folder / image_reward.FILE)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"word{i}" for i in range(image_reward.TEXT["vocab_size"] - 2 - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    return f"model={folder} tokenizer={folder}"


def geneval_coco(folder: Path) -> str:
    """Mask2Former with Swin-S, which is sure of nothing and so leaves ViT-L/14 no colour to tell."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    sizes = {
        "embed_dim": 96,
        "depths": [2, 2, 18, 2],
        "num_heads": [3, 6, 12, 24],
        "window_size": 7,
    }
    swin = SwinConfig(**sizes, out_features=stages)
    config = Mask2FormerConfig(
        backbone_config=swin, num_queries=100, id2label=dict(enumerate(NAMES))
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor().save_pretrained(folder)
    return f"detector.model={folder} colors.clip.{clipscore(folder)}"


def clip(architecture: str) -> dict[str, Tensor]:
    """The weights of one of open_clip's architectures."""
    with torch.device("meta"):
        return noise(open_clip.CLIP(**open_clip.get_model_config(architecture)).state_dict())


def noise(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Random numbers of the shapes of a state that has none yet."""
    with torch.device("cpu"):
        block = torch.randn(BLOCK) * SPREAD
        return {
            key: block.repeat(value.numel() // BLOCK + 1)[: value.numel()]
            .reshape(value.shape)
            .clone()
            for key, value in state.items()
        }


STANDINS = {
    "pickscore_v1": pickscore_v1,
    "hpsv2": hpsv2,
    "clipscore": clipscore,
    "aesthetic": score_of_aesthetics,
    "image_reward": score_of_people,
    "geneval_coco": geneval_coco,
    "diversity_photos": diversity_photos,
}
"""Writes weights into a folder; returns the settings by which the reward of that name reads them."""
