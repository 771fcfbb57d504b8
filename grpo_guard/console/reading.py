"""What scripts read besides a run: prompts, folders of pictures, and rewards by name."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from grpo_guard.console import cli
from grpo_guard.console.options import list_pictures
from grpo_guard.console.overrides import quote_override
from grpo_guard.data import prompts as prompt_files
from grpo_guard.reward import Reward
from grpo_guard.schema import ConfigError, require
from grpo_guard.types import Prompt
from grpo_guard.world import captions

_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    IndexError,
    KeyError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for pictures that are damaged, cut off or too large."""


def build_reward(text: str) -> Reward:
    """Build a reward from its choice in conf/reward and its settings ("ocr match=exact")."""
    name, *settings = text.split() or [""]
    overrides = [f"+reward={name}", *(quote_override(f"reward.{setting}") for setting in settings)]
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        config = compose(overrides=overrides)
    reward: Reward = instantiate(config.reward, _convert_="all")
    return reward


def read_lines(key: str, file: Path) -> list[tuple[str, str]]:
    """Return (place, line) of every line of a file that is not blank; the place is for messages.

    Lines are stripped. Raises ConfigError for a file that is no text, no list or has no prompt.
    """
    where = f"{key}={file}"
    lines = prompt_files.read_lines(where, str(file))
    return [(f"{where} line {number}", line) for number, line in lines]


def read_prompts(key: str, file: Path, parse: Callable[[str], Prompt]) -> list[Prompt]:
    """Return the prompts in a file: captions of the synthetic world, or else what `parse` returns.

    Raises ConfigError for a line that is neither.
    """
    world = {
        prompt.text: prompt
        for heldout in (False, True)
        for prompt in captions.all_prompts(heldout=heldout)
    }
    prompts = []
    for place, line in read_lines(key, file):
        caption = world.get(_only_prompt(line))
        prompts.append(caption or _parse_line(place, line, parse))
    return prompts


def _only_prompt(line: str) -> str:
    """Return `prompt` of a line of JSON that holds nothing else, and any other line as it is."""
    if not line.startswith("{"):
        return line
    try:
        entry = prompt_files.load_json(line)
    except ConfigError:
        return line  # whoever parses the line says what is wrong with it
    return str(entry["prompt"]).strip() if set(entry) == {"prompt"} else line


def _parse_line(place: str, line: str, parse: Callable[[str], Prompt]) -> Prompt:
    try:
        return parse(line)
    except ConfigError as error:
        raise ConfigError(f"{place} is no caption of the synthetic world, and {error}") from error


def pair_pictures(folder: Path, prompts: Sequence[Prompt]) -> list[tuple[Path, Prompt]]:
    """Pair the pictures of a folder, sorted by name, with their prompts.

    Each prompt has the same number of pictures, one after another. Raises ConfigError if there are
    no pictures or their number is no multiple of the number of prompts.
    """
    pictures = list_pictures(folder)
    per_prompt, remainder = divmod(len(pictures), len(prompts))
    require(
        remainder == 0 and per_prompt > 0,
        f"PICTURES={folder} holds {len(pictures)} pictures for {len(prompts)} prompts;"
        " give the same number of pictures for each prompt",
    )
    return [(path, prompts[row // per_prompt]) for row, path in enumerate(pictures)]


def open_image(path: Path) -> Float[Tensor, "1 3 H W"]:
    """Read a picture as RGB floats in [0, 1], upright as viewers show it, on white if transparent.

    Raises ConfigError if it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            return _to_rgb(ImageOps.exif_transpose(picture))[None]
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read ({reason}); replace or remove it") from error


def _to_rgb(picture: Image.Image) -> Float[Tensor, "3 H W"]:
    """Return the colours of a picture; raises ValueError if it does not say what white is."""
    if picture.mode.startswith("I;16"):
        # Pillow would clip 16 bits to 8, which makes nearly everything white.
        levels = torch.from_numpy(np.asarray(picture).astype(np.float32))
        return (levels / 65535).expand(3, -1, -1)
    if picture.mode in ("I", "F"):
        raise ValueError(f"mode {picture.mode} has no white; save it with 8 or 16 bits")
    if picture.has_transparency_data:
        colors = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", colors.size, "white"), colors)
    image: Tensor = to_tensor(picture.convert("RGB"))
    return image
