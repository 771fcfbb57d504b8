"""What scripts read besides a run: prompts, folders of pictures, and rewards by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from grpo_guard.reward import Reward
from grpo_guard.schema import ConfigError, require
from grpo_guard.types import Prompt
from grpo_guard.world import captions
from lib import cli

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def build_reward(text: str) -> Reward:
    """Build a reward from its choice in conf/reward and settings, such as "geneval strict=true"."""
    name, *settings = text.split() or [""]
    overrides = [f"+reward={name}", *(f"reward.{setting}" for setting in settings)]
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        config = compose(overrides=overrides)
    return instantiate(config.reward, _convert_="all")


def read_lines(key: str, file: Path) -> list[tuple[str, str]]:
    """Return (place, line) of every line of a file that is not blank; the place is for messages.

    Lines are stripped. Raises ConfigError if the file cannot be read or all its lines are blank.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{key}={file} cannot be read ({error}); give a UTF-8 file of prompts"
        ) from error
    kept = [
        (f"{key}={file} line {number}", line.strip())
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    require(bool(kept), f"{key}={file} holds no prompt; give one per line")
    return kept


def read_prompts(key: str, file: Path, parse: Callable[[str], Prompt]) -> list[Prompt]:
    """Return the prompts in a file: captions of the synthetic world, or else what `parse` returns.

    Raises ConfigError for a line that is neither.
    """
    world = {
        prompt.text: prompt
        for heldout in (False, True)
        for prompt in captions.all_prompts(heldout=heldout)
    }
    return [
        world.get(line) or _parse_line(place, line, parse) for place, line in read_lines(key, file)
    ]


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
    pictures = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    require(
        bool(pictures),
        f"PICTURES={folder} holds no {', '.join(SUFFIXES)}; give a folder of pictures",
    )
    per_prompt, remainder = divmod(len(pictures), len(prompts))
    require(
        remainder == 0 and per_prompt > 0,
        f"PICTURES={folder} holds {len(pictures)} pictures for {len(prompts)} prompts;"
        " give the same number of pictures for each prompt",
    )
    return [(path, prompts[row // per_prompt]) for row, path in enumerate(pictures)]


def open_image(path: Path) -> Float[Tensor, "1 3 H W"]:
    """Read a picture as RGB floats in [0, 1]; raises ConfigError if it cannot be read."""
    try:
        with Image.open(path) as picture:
            image: Tensor = to_tensor(picture.convert("RGB"))[None]
    except OSError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read ({reason}); replace or remove it") from error
    return image
