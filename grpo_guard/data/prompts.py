"""Prompt files: one prompt per line."""

from __future__ import annotations

from pathlib import Path

from grpo_guard.data import Split
from grpo_guard.types import ConfigError, Prompt, component, require


@component
class Lines:
    """UTF-8 text files with one prompt per line, blank lines skipped; `path` is trained on, `heldout` never."""

    path: str
    heldout: str
    prompts: int
    repeats: int

    def __post_init__(self) -> None:
        require(self.prompts > 0, f"prompts={self.prompts} is not positive")
        require(self.repeats > 1, f"repeats={self.repeats} leaves nothing to compare in a group; give 2 or more")

    def load(self) -> Split:
        """Read both files."""
        return Split(train=_read("path", self.path), heldout=_read("heldout", self.heldout))


def _read(key: str, path: str) -> tuple[Prompt, ...]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"data.{key}={path} cannot be read ({error.strerror}); give a text file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"data.{key}={path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    prompts = tuple(Prompt(text=line.strip()) for line in lines if line.strip())
    require(bool(prompts), f"data.{key}={path} holds no prompt; give one per line")
    return prompts
