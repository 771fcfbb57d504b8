"""The published PickScore weights (arXiv:2305.01569), which are in transformers' format."""

from __future__ import annotations

from typing import Any

import torch

from grpo_guard.assets import locate
from grpo_guard.reward import Scorer
from grpo_guard.reward.pickscore import Clip, check_numbers, preprocessing, scorer
from grpo_guard.types import ConfigError, Prompt, component


@component
class PickScoreV1:
    """PickScore with a transformers CLIPModel of OpenAI's tokenizer and preprocessing: a folder or a hub id."""

    model: str
    scale: float | None
    microbatch: int
    name: str = "pickscore"

    def __post_init__(self) -> None:
        check_numbers(self.scale, self.microbatch)

    def accepts(self, prompt: Prompt) -> bool:
        """Any text will do."""
        return True

    def load(self, device: torch.device) -> Scorer:
        """The scorer, with float32 weights on the device."""
        return scorer(_transformers(self.model, device), self.name, self.scale, self.microbatch, device)


def _transformers(model: str, device: torch.device) -> Clip:
    from open_clip import SimpleTokenizer
    from transformers import CLIPModel

    try:
        clip: Any = CLIPModel.from_pretrained(locate("model", model), dtype=torch.float32).requires_grad_(False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"model={model} cannot be loaded ({reason}); give a complete CLIPModel folder") from error
    clip.to(device)
    return Clip(
        tokenize=SimpleTokenizer(context_length=clip.config.text_config.max_position_embeddings),
        text=lambda tokens: clip.text_projection(clip.text_model(input_ids=tokens).pooler_output),
        preprocess=preprocessing(size=clip.config.vision_config.image_size),
        image=lambda pixels: clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output),
        scale=clip.logit_scale.exp().item(),
    )
