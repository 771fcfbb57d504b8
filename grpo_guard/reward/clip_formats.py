"""The formats in which CLIP models are published, each with its tokenizer and preprocessing."""

from __future__ import annotations

import pickle
import textwrap
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pixels

from grpo_guard.assets import locate
from grpo_guard.pixels import to_8_bit
from grpo_guard.reward.clip import Towers, Transform
from grpo_guard.schema import ConfigError, require
from grpo_guard.shortage import is_shortage

# What libraries raise for files that are missing, damaged or of another format.
_LOAD_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    HTTPError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    pickle.UnpicklingError,
    SafetensorError,
)


_in_use: WeakValueDictionary[Hashable, Towers] = WeakValueDictionary()
"""Models that scorers hold; each is dropped together with the last scorer that holds it."""


def share_in_use(read: Callable[..., Towers]) -> Callable[..., Towers]:
    """Let `read` return a model that a scorer already holds, if it is asked for the same one.

    Several scorers use OpenAI's ViT-L/14, which takes 1.6 GiB in float32.
    """

    @wraps(read)
    def read_unless_in_use(**settings: Any) -> Towers:
        key = (read.__name__, _identify(settings))
        towers = _in_use.get(key)
        if towers is None:
            towers = _in_use[key] = read(**settings)
        return towers

    return read_unless_in_use


def _identify(value: Any) -> Hashable:
    """Return what is equal for equal settings; equal partial functions are not equal themselves."""
    if isinstance(value, partial):
        return value.func, _identify(value.args), _identify(value.keywords)
    if isinstance(value, Mapping):
        return frozenset((key, _identify(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_identify, value))
    identity: Hashable = value
    return identity


@share_in_use
def open_clip_folder(*, model: str, device: torch.device, dtype: torch.dtype) -> Towers:
    """Read open_clip's own format: a shipped asset, a folder or a hub id.

    The folder holds the preprocessing and the tokenizer too.
    """
    import open_clip

    source = locate("model", model)
    name = f"local-dir:{source}" if Path(source).is_dir() else f"hf-hub:{source}"
    with loading("model", model, "open_clip_config.json and open_clip_model.safetensors"):
        clip = open_clip.create_model(name, require_pretrained=True, device=device)
        tokenize = open_clip.get_tokenizer(name)
    preprocess = build_preprocess(**clip.visual.preprocess_cfg)
    return _make_towers(clip, tokenize, preprocess, device, dtype)


@share_in_use
def open_clip_file(
    *,
    model: str,
    device: torch.device,
    dtype: torch.dtype,
    architecture: str,
    file: str,
    preprocess: Callable[[int], Transform],
) -> Towers:
    """Read a file of weights, from a folder or the hub, for an architecture of open_clip.

    `preprocess` is called with the side of the images that the architecture sees, in px.
    """
    import open_clip

    config = open_clip.get_model_config(architecture)
    require(
        config is not None,
        f"architecture={architecture} is unknown; choose one of open_clip.list_models()",
    )
    path = find_file("model", model, file)
    with loading("model", model, file), device:
        clip = open_clip.CLIP(**config)
        clip.load_state_dict(read_tensors(path))
    tokenize = open_clip.get_tokenizer(architecture)
    return _make_towers(clip, tokenize, preprocess(clip.visual.image_size[0]), device, dtype)


@share_in_use
def transformers_folder(*, model: str, device: torch.device, dtype: torch.dtype) -> Towers:
    """Read a `CLIPModel` of transformers, from a folder or the hub.

    The tokenizer and the preprocessing are OpenAI's.
    """
    from open_clip import SimpleTokenizer
    from transformers import CLIPModel

    source = locate("model", model)
    with loading("model", model, "config.json and model.safetensors"):
        loaded: Any = CLIPModel.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True
        )
    clip, report = loaded
    check_complete(model, report, "config.json and model.safetensors")
    gain = clip.logit_scale.exp().item()  # before the weights are rounded to dtype
    clip.requires_grad_(False).to(device, dtype)

    def text(tokens: Tensor) -> Tensor:
        embedding: Tensor = clip.text_projection(
            clip.text_model(input_ids=tokens.to(device)).pooler_output
        )
        return embedding

    def image(x: Tensor) -> Tensor:
        embedding: Tensor = clip.visual_projection(
            clip.vision_model(pixel_values=x.to(device, dtype)).pooler_output
        )
        return embedding

    return Towers(
        tokenize=SimpleTokenizer(context_length=clip.config.text_config.max_position_embeddings),
        text=text,
        preprocess=shortest_side(clip.config.vision_config.image_size),
        image=image,
        width=clip.config.projection_dim,
        gain=gain,
    )


def build_preprocess(**config: object) -> Transform:
    """Return open_clip's evaluation transform with these options, applied to 8-bit pictures.

    It resizes with Pillow, as published scores were computed: torch's resampling differs.
    """
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(**config), is_train=False)

    def preprocess(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 S S"]:
        pictures = to_8_bit(images).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return torch.stack([transform(Image.fromarray(picture)) for picture in pictures])

    return preprocess


def shortest_side(size: int) -> Transform:
    """Return OpenAI's preprocessing: resize the shorter side to `size` px, keep the centre."""
    return build_preprocess(size=size)


def longest_side(size: int) -> Transform:
    """Return HPSv2's preprocessing: resize the longer side to `size` px, pad with black.

    It resizes floats, which may overshoot [0, 1], as the published code does.
    """
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    def preprocess(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 S S"]:
        longer = max(images.shape[-2:])
        height, width = (round(side * size / longer) for side in images.shape[-2:])
        small = pixels.resize(to_8_bit(images) / 255, [height, width], InterpolationMode.BICUBIC)
        left = (size - width) // 2
        top = (size - height) // 2
        square = pixels.pad(small, [left, top, size - width - left, size - height - top])
        standardized: Tensor = pixels.normalize(square, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
        return standardized

    return preprocess


def find_file(key: str, model: str, file: str) -> Path:
    """Return the path of a file in a folder, or download it from the hub.

    Raises ConfigError, which names the key, if the file is not there.
    """
    source = Path(locate(key, model))
    if source.is_dir():
        require(
            (source / file).is_file(),
            f"{key}={model} holds no {file}; put that file into the folder",
        )
        return source / file
    with loading(key, model, file):
        return Path(hf_hub_download(model, file))


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors in a file of torch or safetensors, unwrapped from a `state_dict` key."""
    if path.suffix == ".safetensors":
        content: Any = load_file(path)
    else:
        content = torch.load(path, map_location="cpu", weights_only=True)
    state: Mapping[str, Tensor] = content.get("state_dict", content)
    return state


@contextmanager
def loading(key: str, model: str, files: str) -> Iterator[None]:
    """Turn a library's error about a checkpoint into a ConfigError that names the needed files."""
    try:
        yield
    except _LOAD_ERRORS as error:
        if is_shortage(error):
            raise
        reason = textwrap.shorten(str(error), 160, placeholder=" ...") or type(error).__name__
        raise ConfigError(
            f"{key}={model} cannot be loaded ({reason});"
            f" put {files} into a folder and give {key}=that folder"
        ) from error


def check_complete(
    model: str, report: Mapping[str, Any], files: str, ignored: tuple[str, ...] = ()
) -> None:
    """Raise ConfigError if transformers' loading report names missing or unknown weights.

    transformers itself fills missing weights with random numbers and drops unknown ones. Weights
    whose names end with one of `ignored` do not matter.
    """
    wrong = [*sorted(report["missing_keys"]), *sorted(report["unexpected_keys"])]
    wrong = [key for key in wrong if not key.endswith(ignored)]
    require(
        not wrong,
        f"model={model} does not fit its config.json ({len(wrong)} weights such as"
        f" {', '.join(wrong[:1])}); give a folder with the published {files}",
    )


def _make_towers(
    clip: Any,
    tokenize: Callable[[list[str]], Tensor],
    preprocess: Transform,
    device: torch.device,
    dtype: torch.dtype,
) -> Towers:
    gain = clip.logit_scale.exp().item()  # before the weights are rounded to dtype
    clip.eval().requires_grad_(False).to(device, dtype)
    return Towers(
        tokenize=tokenize,
        text=lambda tokens: clip.encode_text(tokens.to(device)),
        preprocess=preprocess,
        image=lambda x: clip.encode_image(x.to(device, dtype)),
        width=clip.visual.output_dim,
        gain=gain,
    )
