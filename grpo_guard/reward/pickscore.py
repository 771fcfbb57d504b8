"""How well a picture fits its text, by a CLIP model tuned on people's choices (PickScore, arXiv:2305.01569)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.assets import locate
from grpo_guard.reward import Scorer, rewards
from grpo_guard.types import ConfigError, Prompt, Rewards, component, record, require

Encode = Callable[[Tensor], Tensor]


@record
class Clip:
    """A text encoder and an image encoder that meet in one space; `scale` is exp(logit_scale)."""

    tokenize: Callable[[list[str]], Tensor]
    text: Encode
    preprocess: Encode
    image: Encode
    scale: float


@component
class PickScore:
    """`exp(logit_scale) * cos(text, image)`, divided by `scale` unless that is null (upstream divides by 26).

    `model` is a shipped asset, a folder or a hub id, in open_clip's format (`open_clip_config.json` and weights).
    """

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
        return scorer(_open_clip(self.model, device), self.name, self.scale, self.microbatch, device)


def check_numbers(scale: float | None, microbatch: int) -> None:
    """Refuse settings that no CLIP scorer can use."""
    require(scale is None or scale > 0, f"scale={scale} is not positive; give what scores are divided by, or null")
    require(microbatch > 0, f"microbatch={microbatch} is not positive; give the images encoded at a time")


def scorer(clip: Clip, name: str, scale: float | None, microbatch: int, device: torch.device) -> Scorer:
    """Scores each image against its own text, a few at a time; a text is encoded once however many images it has."""
    factor = clip.scale / (scale or 1)

    @torch.no_grad()
    def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
        row = {text: i for i, text in enumerate(dict.fromkeys(prompt.text for prompt in prompts))}
        tokens = clip.tokenize(list(row)).to(device)
        texts = torch.cat([_unit(clip.text(chunk)) for chunk in tokens.split(microbatch)])
        pictures = [_unit(clip.image(clip.preprocess(chunk.to(device)))) for chunk in images.split(microbatch)]
        cosine = (texts[[row[prompt.text] for prompt in prompts]] * torch.cat(pictures)).sum(1)
        return rewards(**{name: (factor * cosine).to(images.device)})

    return score


def preprocessing(**config: object) -> Encode:
    """open_clip's own evaluation transform, for tensors in [0, 1]; overshoot is clipped as it is in 8-bit pictures."""
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.transforms import Compose

    *resize, normalize = image_transform_v2(PreprocessCfg(**config), is_train=False).transforms
    transform: Encode = Compose([*resize, partial(torch.clamp, min=0, max=1), normalize])
    return transform


def _open_clip(model: str, device: torch.device) -> Clip:
    import open_clip

    source = locate("model", model)
    name = f"local-dir:{source}" if Path(source).is_dir() else f"hf-hub:{source}"
    try:
        clip = open_clip.create_model(name, require_pretrained=True, device=device).eval().requires_grad_(False)
        tokenize = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"model={model} cannot be loaded ({reason}); give a complete open_clip folder") from error
    return Clip(
        tokenize=tokenize,
        text=clip.encode_text,
        preprocess=preprocessing(**clip.visual.preprocess_cfg),
        image=clip.encode_image,
        scale=clip.logit_scale.exp().item(),
    )


def _unit(rows: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
    return torch.nn.functional.normalize(rows.float(), dim=1)
