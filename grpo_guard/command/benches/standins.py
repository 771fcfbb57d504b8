"""Random weights in the formats and sizes of published scorers, which are not always at hand.

Each writer writes weights into a folder, and returns the settings with which the reward of that
name reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from grpo_guard.reward.mask2former import COCO_NAMES

SPREAD = 0.02
"""Standard deviation of the weights."""
BLOCK = 2**20
"""Numbers that are drawn; larger tensors repeat them, which is faster."""


def write_pickscore_v1(folder: Path) -> str:
    """Write transformers' CLIP ViT-H/14."""
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
        state = CLIPModel(config).state_dict()
    save_file(fill_randomly(state), folder / "model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)
    return f"model={folder}"


def write_hpsv2(folder: Path) -> str:
    """Write open_clip's ViT-H/14."""
    state = {"state_dict": make_open_clip("ViT-H-14")}
    torch.save(state, folder / "HPS_v2.1_compressed.pt")
    return f"model={folder}"


def write_clipscore(folder: Path) -> str:
    """Write OpenAI's ViT-L/14."""
    save_file(make_open_clip("ViT-L-14-quickgelu"), folder / "open_clip_model.safetensors")
    return f"model={folder}"


def write_diversity_photos(folder: Path) -> str:
    """Write OpenAI's ViT-L/14, which this reward has under `clip`."""
    return f"clip.{write_clipscore(folder)}"


def write_aesthetic(folder: Path) -> str:
    """Write OpenAI's ViT-L/14 and the regression on its embeddings."""
    regression = aesthetic.build_regression(aesthetic.EMBEDDING_WIDTH).state_dict()
    state = {f"layers.{key}": value for key, value in regression.items()}
    torch.save(state, folder / aesthetic.PREDICTOR_FILE)
    return f"model={folder} clip.{write_clipscore(folder)}"


def write_image_reward(folder: Path) -> str:
    """Write BLIP under its published names, and a vocabulary as large as BERT's."""
    with torch.device("meta"):
        state = image_reward.Blip().state_dict()
    published = fill_randomly({published_name(key): value for key, value in state.items()})
    torch.save(published, folder / image_reward.CHECKPOINT_FILE)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # The reward itself adds two more tokens.
    words += [f"word{i}" for i in range(image_reward.TEXT["vocab_size"] - 2 - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    return f"model={folder} tokenizer={folder}"


def published_name(key: str) -> str:
    """Return the published name of one of ImageReward's tensors, undoing the reward's renaming."""
    for published, own in reversed(image_reward.RENAMED_PARTS.items()):
        key = key.replace(own, published)
    return key


def write_geneval_coco(folder: Path) -> str:
    """Write Mask2Former with Swin-S, and OpenAI's ViT-L/14 for colours.

    With random weights it is certain of no object, so that no colour is ever classified.
    """
    return f"{write_detector(folder)} colors.clip.{write_clipscore(folder)}"


def write_detector(folder: Path, certainty: float = 1.0) -> str:
    """Write Mask2Former with Swin-S; `certainty` is a factor on the weights of its classes."""
    swin = SwinConfig(
        embed_dim=96,
        depths=[2, 2, 18, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin, num_queries=100, id2label=dict(enumerate(COCO_NAMES))
    )
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        model.class_predictor.weight.mul_(certainty)
    model.save_pretrained(folder)
    Mask2FormerImageProcessor().save_pretrained(folder)
    return f"detector.model={folder}"


def make_open_clip(architecture: str) -> dict[str, Tensor]:
    """Make the weights of one of open_clip's architectures."""
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(architecture))
    return fill_randomly(model.state_dict())


def fill_randomly(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make random tensors of the shapes of a state on the meta device."""
    block = torch.randn(BLOCK) * SPREAD
    return {
        key: block.repeat(value.numel() // BLOCK + 1)[: value.numel()].reshape(value.shape).clone()
        for key, value in state.items()
    }


WRITERS: Mapping[str, Callable[[Path], str]] = {
    "pickscore_v1": write_pickscore_v1,
    "hpsv2": write_hpsv2,
    "clipscore": write_clipscore,
    "aesthetic": write_aesthetic,
    "image_reward": write_image_reward,
    "geneval_coco": write_geneval_coco,
    "diversity_photos": write_diversity_photos,
}
"""Writers by the name of their reward in conf/."""
