"""What scripts read beside a run: prompts, folders of pictures, and rewards by their names in conf/."""

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
from grpo_guard.types import ConfigError, Prompt, require
from grpo_guard.world import captions
from lib import cli

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def reward(text: str) -> Reward:
    """The reward of a choice and its settings, such as "geneval strict=true"."""
    name, *settings = text.split() or [""]
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        found = compose(
            overrides=[f"+reward={name}", *(f"reward.{setting}" for setting in settings)]
        )
    return instantiate(found.reward, _convert_="all")


def lines(key: str, file: Path) -> list[tuple[str, str]]:
    """The lines of a file that are not blank, stripped, each after where it is; raises ConfigError without any."""
    try:
        found = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{key}={file} cannot be read ({error}); give a UTF-8 file of prompts"
        ) from error
    kept = [
        (f"{key}={file} line {number}", line.strip())
        for number, line in enumerate(found, start=1)
        if line.strip()
    ]
    require(bool(kept), f"{key}={file} holds no prompt; give one per line")
    return kept


def prompts(key: str, file: Path, parse: Callable[[str], Prompt]) -> list[Prompt]:
    """The captions of the synthetic world in a file, and what `parse` makes of other lines, or refuses to."""
    world = {
        prompt.text: prompt
        for heldout in (False, True)
        for prompt in captions.prompts(heldout=heldout)
    }
    return [world.get(line) or _parsed(where, line, parse) for where, line in lines(key, file)]


def _parsed(where: str, line: str, parse: Callable[[str], Prompt]) -> Prompt:
    try:
        return parse(line)
    except ConfigError as error:
        raise ConfigError(f"{where} is no caption of the synthetic world, and {error}") from error


def paired(folder: Path, prompts: Sequence[Prompt]) -> list[tuple[Path, Prompt]]:
    """The pictures of a folder, in the order of their names, with their prompts: as many of each prompt."""
    pictures = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    require(
        bool(pictures),
        f"PICTURES={folder} holds no {', '.join(SUFFIXES)}; give a folder of pictures",
    )
    each, left = divmod(len(pictures), len(prompts))
    require(
        not left and each > 0,
        f"PICTURES={folder} holds {len(pictures)} pictures for {len(prompts)} prompts; give as many of each prompt",
    )
    return [(path, prompts[row // each]) for row, path in enumerate(pictures)]


def opened(path: Path) -> Float[Tensor, "1 3 H W"]:
    """A picture in [0, 1]."""
    try:
        with Image.open(path) as picture:
            image: Tensor = to_tensor(picture.convert("RGB"))[None]
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({' '.join(str(error).split())}); mend it or leave it out"
        ) from error
    return image
