"""How much people like a picture for its text, by a BLIP model tuned on their rankings (ImageReward, arXiv:2304.05977).

Built of transformers' BLIP, whose arithmetic was checked against the published layers written anew: the same scores
from the same weights, and at full size the same names and shapes. The published weights themselves were not at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from grpo_guard.reward import Scorer, scored
from grpo_guard.reward.aesthetic import head
from grpo_guard.reward.clip import Encoded, unique
from grpo_guard.reward.clip_formats import loading, shortest_side, stored, weights
from grpo_guard.types import Prompt, Rewards, component, require

FILE = "ImageReward.pt"
MEAN, STD = (
    0.16717362830052426,
    1.0333394966054072,
)  # of the raw scores in the published validation set
TOKENS = 35
VISION: Mapping[str, Any] = {  # ViT-L/16
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "layer_norm_eps": 1e-6,
}
TEXT: Mapping[str, Any] = {  # BERT base, with [DEC] and [ENC] after its own words
    "vocab_size": 30524,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
}
_RENAMED = {
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
class ImageReward(Encoded):
    """A score of mean 0 and standard deviation 1 over the pictures that people ranked.

    `model` is a folder or a hub id that holds `ImageReward.pt`, `tokenizer` one with BERT's `vocab.txt`. Of a long
    text the first 35 tokens are read.
    """

    model: str
    tokenizer: str

    def load(self, device: torch.device) -> Scorer:
        """The scorer; each text reads its picture, so both are encoded once per image."""
        path, tokenizer = weights("model", self.model, FILE), self._tokenizer()
        blip = self._blip(path, device)
        preprocess = shortest_side(VISION["image_size"])

        @torch.no_grad()
        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            texts, rows = unique(prompts)
            padded = tokenizer(
                texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
            )
            tokens, mask = (
                padded[key][rows].split(self.microbatch) for key in ("input_ids", "attention_mask")
            )
            chunks = zip(images.split(self.microbatch), tokens, mask, strict=True)
            raw = torch.cat(
                [blip(preprocess(x).to(device), t.to(device), m.to(device)) for x, t, m in chunks]
            )
            return scored(images, **{self.name: (raw - MEAN) / STD})

        return score

    def _tokenizer(self) -> Any:
        from transformers import BertTokenizer

        path = weights("tokenizer", self.tokenizer, "vocab.txt")
        with loading("tokenizer", self.tokenizer, "vocab.txt"):
            tokenizer = BertTokenizer.from_pretrained(path.parent)
            tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
        require(
            len(tokenizer) == TEXT["vocab_size"],
            f"tokenizer={self.tokenizer} has {len(tokenizer)} tokens, not {TEXT['vocab_size']};"
            " give a folder with the vocab.txt of google-bert/bert-base-uncased",
        )
        return tokenizer

    def _blip(self, path: Path, device: torch.device) -> Blip:
        with loading("model", self.model, FILE), device:
            blip = Blip()
            blip.load_state_dict(renamed(stored(path)))
        blip.eval().requires_grad_(False).to(device, getattr(torch, self.dtype))
        blip.head.float()
        return blip


class Blip(nn.Module):
    """A text that reads a picture, and a regression on its first token."""

    def __init__(self) -> None:
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        text = BlipTextConfig(**TEXT, encoder_hidden_size=VISION["hidden_size"], is_decoder=True)
        self.vision = BlipVisionModel(BlipVisionConfig(**VISION))
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = head(TEXT["hidden_size"])

    def forward(
        self, images: Float[Tensor, "B 3 S S"], tokens: Int[Tensor, "B L"], mask: Int[Tensor, "B L"]
    ) -> Float[Tensor, " B"]:
        """Scores before they are normalised, float32."""
        seen = self.vision(images.to(self.vision.dtype)).last_hidden_state
        read = self.text(tokens, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
        raw: Tensor = self.head(read[:, 0].float()).squeeze(1)
        return raw


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published weights under transformers' names, without BLIP's other branches and the buffers of its time."""
    known = [
        key for key in state if key.startswith(tuple(_RENAMED)) and not key.endswith("position_ids")
    ]
    return {
        reduce(lambda name, pair: name.replace(*pair), _RENAMED.items(), key): state[key]
        for key in known
    }
