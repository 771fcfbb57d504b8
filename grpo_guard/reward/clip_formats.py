"""The formats that CLIP models are published in, and the preprocessing that belongs to them."""

from __future__ import annotations

import pickle
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pixels

from grpo_guard.assets import locate
from grpo_guard.reward.clip import Encode, Towers
from grpo_guard.types import ConfigError, require

_BROKEN: tuple[
    type[Exception], ...
] = (  # what libraries raise on files that are missing, damaged or others
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    pickle.UnpicklingError,
    SafetensorError,
)


def open_clip_folder(*, model: str, device: torch.device, dtype: torch.dtype) -> Towers:
    """open_clip's own format: a shipped asset, a folder or a hub id, with its preprocessing and tokenizer."""
    import open_clip

    source = locate("model", model)
    name = f"local-dir:{source}" if Path(source).is_dir() else f"hf-hub:{source}"
    with loading("model", model, "open_clip_config.json and open_clip_model.safetensors"):
        clip = open_clip.create_model(name, require_pretrained=True, device=device)
        tokenize = open_clip.get_tokenizer(name)
    return _towers(clip, tokenize, evaluation(**clip.visual.preprocess_cfg), device, dtype)


def open_clip_file(
    *,
    model: str,
    device: torch.device,
    dtype: torch.dtype,
    architecture: str,
    file: str,
    preprocess: Callable[[int], Encode],
) -> Towers:
    """A file of weights, in a folder or on the hub, for an architecture that open_clip knows."""
    import open_clip

    config = open_clip.get_model_config(architecture)
    require(
        config is not None,
        f"architecture={architecture} is unknown; choose one of open_clip.list_models()",
    )
    path = weights("model", model, file)
    with loading("model", model, file), device:
        clip = open_clip.CLIP(**config)
        clip.load_state_dict(stored(path))
    size = clip.visual.image_size[0]
    return _towers(clip, open_clip.get_tokenizer(architecture), preprocess(size), device, dtype)


def transformers_folder(*, model: str, device: torch.device, dtype: torch.dtype) -> Towers:
    """A transformers CLIPModel of OpenAI's tokenizer and preprocessing: a folder or a hub id."""
    from open_clip import SimpleTokenizer
    from transformers import CLIPModel

    source = locate("model", model)
    with loading("model", model, "config.json and model.safetensors"):
        found: Any = CLIPModel.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True
        )
    clip, report = found
    _check_complete(model, report)
    gain = clip.logit_scale.exp().item()
    clip.requires_grad_(False).to(device, dtype)
    return Towers(
        tokenize=SimpleTokenizer(context_length=clip.config.text_config.max_position_embeddings),
        text=lambda tokens: clip.text_projection(
            clip.text_model(input_ids=tokens.to(device)).pooler_output
        ),
        preprocess=shortest_side(clip.config.vision_config.image_size),
        image=lambda x: clip.visual_projection(
            clip.vision_model(pixel_values=x.to(device, dtype)).pooler_output
        ),
        width=clip.config.projection_dim,
        gain=gain,
    )


def evaluation(**config: object) -> Encode:
    """open_clip's own evaluation transform, of 8-bit pictures by Pillow as published scores are computed."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(**config), is_train=False)

    def prepare(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 S S"]:
        pictures = levels(images).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return torch.stack([transform(Image.fromarray(picture)) for picture in pictures])

    return prepare


def shortest_side(size: int) -> Encode:
    """OpenAI's preprocessing: the shorter side becomes `size` px, of which the middle is seen."""
    return evaluation(size=size)


def longest_side(size: int) -> Encode:
    """HPSv2's preprocessing: the longer side becomes `size` px, in floats that may overshoot, with black around."""
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    def prepare(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 S S"]:
        height, width = (round(side * size / max(images.shape[-2:])) for side in images.shape[-2:])
        small = pixels.resize(levels(images) / 255, [height, width], InterpolationMode.BICUBIC)
        left, top = (size - width) // 2, (size - height) // 2
        square = pixels.pad(small, [left, top, size - width - left, size - height - top])
        normal: Tensor = pixels.normalize(square, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
        return normal

    return prepare


def levels(images: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Images in [0, 1] as 8-bit pictures, which is what every published scorer saw."""
    return images.nan_to_num().clamp(0, 1).mul(255).round().byte()


def weights(key: str, model: str, file: str) -> Path:
    """The path of a file in a folder or on the hub; raises ConfigError where it cannot be had."""
    source = Path(locate(key, model))
    if source.is_dir():
        require(
            (source / file).is_file(),
            f"{key}={model} holds no {file}; put that file into the folder",
        )
        return source / file
    with loading(key, model, file):
        return Path(hf_hub_download(model, file))


def stored(path: Path) -> Mapping[str, Tensor]:
    """The tensors in a file of torch's or of safetensors', without the `state_dict` that may be around them."""
    safe = path.suffix == ".safetensors"
    found: Any = (
        load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    )
    state: Mapping[str, Tensor] = found.get("state_dict", found)
    return state


@contextmanager
def loading(key: str, model: str, files: str) -> Iterator[None]:
    """Turn whatever a library says of a checkpoint into one line with the files that are wanted."""
    try:
        yield
    except _BROKEN as error:
        reason = textwrap.shorten(str(error), 160, placeholder=" ...") or type(error).__name__
        raise ConfigError(
            f"{key}={model} cannot be loaded ({reason}); put {files} into a folder and give {key}=that folder"
        ) from error


def _check_complete(model: str, report: Mapping[str, Any]) -> None:
    """transformers fills gaps with random numbers and drops what it does not know; here both are refused."""
    wrong = [key for kind in ("missing_keys", "unexpected_keys") for key in sorted(report[kind])]
    require(
        not wrong,
        f"model={model} does not fit its config.json ({len(wrong)} weights such as {', '.join(wrong[:1])});"
        " give a folder with the published config.json and model.safetensors",
    )


def _towers(
    clip: Any,
    tokenize: Callable[[list[str]], Tensor],
    preprocess: Encode,
    device: torch.device,
    dtype: torch.dtype,
) -> Towers:
    gain = clip.logit_scale.exp().item()
    clip.eval().requires_grad_(False).to(device, dtype)
    return Towers(
        tokenize=tokenize,
        text=lambda tokens: clip.encode_text(tokens.to(device)),
        preprocess=preprocess,
        image=lambda x: clip.encode_image(x.to(device, dtype)),
        width=clip.visual.output_dim,
        gain=gain,
    )
