"""How much people like an image for its prompt: ImageReward (arXiv:2304.05977).

ImageReward is a BLIP model tuned on people's rankings. It is built of transformers' BLIP here.
Tests compare it with the published layers, written out anew: the same weights give the same scores,
and at full size the names and shapes agree. The published weights themselves were not available.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from grpo_guard.reward import Scorer, make_rewards
from grpo_guard.reward._published import published_bytes
from grpo_guard.reward.aesthetic import build_regression
from grpo_guard.reward.clip import EncoderReward, unique_texts
from grpo_guard.reward.clip_formats import find_file, loading, read_tensors, shortest_side
from grpo_guard.schema import component, require
from grpo_guard.types import Prompt, Rewards

CHECKPOINT_FILE = "ImageReward.pt"
MEAN = 0.16717362830052426
"""Mean of the raw scores on the published validation set."""
STD = 1.0333394966054072
"""Standard deviation of the raw scores on the published validation set."""
TOKENS = 35
"""Length that texts are cut or padded to, as in the published training."""
VISION: Mapping[str, Any] = {  # ViT-L/16
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "layer_norm_eps": 1e-6,
}
TEXT: Mapping[str, Any] = {  # BERT base, whose vocabulary ends with [DEC] and [ENC]
    "vocab_size": 30524,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
}
# Published part of a name -> transformers' part. They are replaced in this order: the later ones
# expect the prefix that an earlier one wrote.
RENAMED_PARTS = {
    "mlp.layers.": "head.",
    "blip.text_encoder.": "text.",
    "blip.visual_encoder.": "vision.",
    "vision.cls_token": "vision.embeddings.class_embedding",
    "vision.pos_embed": "vision.embeddings.position_embedding",
    "vision.patch_embed.proj.": "vision.embeddings.patch_embedding.",
    "vision.norm.": "vision.post_layernorm.",
    "vision.blocks.": "vision.encoder.layers.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}


@component
class ImageReward(EncoderReward):
    """Score an image with mean 0 and standard deviation 1 over the images that people ranked.

    Only the first 35 tokens of a text are read.
    """

    meanings: ClassVar[Mapping[str, str]] = {
        "{name}": "how much people like the picture for its prompt, by a learned scorer; 0 is"
        " usual, and 1 is one standard deviation better",
    }
    model: str
    """Folder or hub id with `ImageReward.pt`."""
    tokenizer: str
    """Folder or hub id with BERT's `vocab.txt`."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the model's weights in its dtype."""
        return published_bytes(self.model, self.dtype)

    def load(self, device: torch.device) -> Scorer:
        """Load the model and return the scorer.

        The text encoder attends to the image, so every image needs its text encoded with it.
        """
        path = find_file("model", self.model, CHECKPOINT_FILE)
        tokenizer = self._load_tokenizer()
        blip = self._load_blip(path, device)
        preprocess = shortest_side(VISION["image_size"])

        @torch.no_grad()
        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            texts, rows = unique_texts(prompts)
            padded = tokenizer(
                texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
            )
            chunks = zip(
                images.split(self.microbatch),
                padded["input_ids"][rows].split(self.microbatch),
                padded["attention_mask"][rows].split(self.microbatch),
                strict=True,
            )
            raw = torch.cat(
                [blip(preprocess(x).to(device), t.to(device), m.to(device)) for x, t, m in chunks]
            )
            return make_rewards(images, **{self.name: (raw - MEAN) / STD})

        return score

    def _load_tokenizer(self) -> Any:
        from transformers import BertTokenizer

        path = find_file("tokenizer", self.tokenizer, "vocab.txt")
        with loading("tokenizer", self.tokenizer, "vocab.txt"):
            tokenizer = BertTokenizer.from_pretrained(path.parent)
            tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
        require(
            len(tokenizer) == TEXT["vocab_size"],
            f"tokenizer={self.tokenizer} has {len(tokenizer)} tokens, not {TEXT['vocab_size']};"
            " give a folder with the vocab.txt of google-bert/bert-base-uncased",
        )
        return tokenizer

    def _load_blip(self, path: Path, device: torch.device) -> Blip:
        with loading("model", self.model, CHECKPOINT_FILE), device:
            blip = Blip()
            blip.load_state_dict(rename_weights(read_tensors(path)))
        blip.eval().requires_grad_(False).to(device, getattr(torch, self.dtype))
        blip.head.float()
        return blip


class Blip(nn.Module):
    """A text encoder that attends to an image, and a regression on its first token."""

    def __init__(self) -> None:
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        # only a decoder has cross-attention in transformers
        text = BlipTextConfig(**TEXT, encoder_hidden_size=VISION["hidden_size"], is_decoder=True)
        self.vision = BlipVisionModel(BlipVisionConfig(**VISION))
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = build_regression(TEXT["hidden_size"])

    def forward(
        self, images: Float[Tensor, "B 3 S S"], tokens: Int[Tensor, "B L"], mask: Int[Tensor, "B L"]
    ) -> Float[Tensor, " B"]:
        """Return raw scores in float32, before they are normalized."""
        patches = self.vision(images.to(self.vision.dtype)).last_hidden_state
        words = self.text(
            tokens, attention_mask=mask, encoder_hidden_states=patches
        ).last_hidden_state
        raw: Tensor = self.head(words[:, 0].float()).squeeze(1)
        return raw


def rename_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the published weights under transformers' names.

    BLIP's other branches and the position ids, a buffer of older versions, are left out.
    """
    prefixes = tuple(RENAMED_PARTS)
    weights = {}
    for key, value in state.items():
        if not key.startswith(prefixes) or key.endswith("position_ids"):
            continue
        for old, new in RENAMED_PARTS.items():
            key = key.replace(old, new)
        weights[key] = value
    return weights
