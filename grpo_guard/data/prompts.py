"""Prompt files: one prompt per line, as plain text or in another format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path

from grpo_guard import assets
from grpo_guard.data import Split
from grpo_guard.schema import ConfigError, component, require
from grpo_guard.types import Prompt

ParseLine = Callable[[str], Prompt]
"""Parses a line that is stripped and not blank.

Raises ConfigError that says what is wrong with the line and how to fix it.
"""


@component
class PromptFile:
    """Read prompts from UTF-8 files, one prompt per line; blank lines are skipped."""

    path: str
    """File of prompts to train on. If no such file exists, a file that ships with the package
    (`prompts/...`) is used."""
    heldout: str | None
    """File of held-out prompts, which are never trained on; null holds out a share of `path`."""
    heldout_share: float
    """Share of `path` that is held out if `heldout` is null, in (0, 1).

    Whether a prompt is held out depends only on its text. Equal texts stay on one side, and adding
    lines moves no other prompt.
    """
    parse: ParseLine
    """Function that parses a line."""
    prompts: int
    """Number of prompts per iteration."""
    repeats: int
    """Number of samples of each prompt, which are compared with each other; 2 or more."""

    def __post_init__(self) -> None:
        require(self.prompts > 0, f"prompts={self.prompts} is not positive; give 1 or more")
        require(
            self.repeats > 1,
            f"repeats={self.repeats} leaves nothing to compare in a group; give 2 or more",
        )
        require(
            0 < self.heldout_share < 1,
            f"heldout_share={self.heldout_share} is outside (0, 1); 0.05 holds out a 20th",
        )

    def load(self) -> Split:
        """Read the files; raises ConfigError that names a file, its first bad line and a remedy."""
        prompts = _read("path", self.path, self.parse)
        if self.heldout is None:
            heldout = self._hold_out(prompts)
        else:
            heldout = _read("heldout", self.heldout, self.parse)
        texts = {prompt.text for prompt in heldout}
        train = tuple(prompt for prompt in prompts if prompt.text not in texts)
        require(
            bool(train),
            f"data.path={self.path} has only prompts that are held out;"
            " add prompts, or hold out fewer",
        )
        return Split(train=train, heldout=heldout)

    def _hold_out(self, prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
        heldout = tuple(p for p in prompts if unit_hash(p.text) < self.heldout_share)
        require(
            bool(heldout),
            f"data.heldout_share={self.heldout_share} holds out none of the {len(prompts)} prompts"
            f" of data.path={self.path}; raise it, or give data.heldout",
        )
        return heldout


def parse_plain(line: str) -> Prompt:
    """Take the whole line as the prompt."""
    return Prompt(text=line)


def unit_hash(text: str) -> float:
    """Hash a text to a number in [0, 1), uniform over texts.

    It must never change: with another hash, a resumed run would train on held-out prompts.
    """
    return int.from_bytes(blake2b(text.encode(), digest_size=6).digest()) / 2**48


def _read(key: str, path: str, parse: ParseLine) -> tuple[Prompt, ...]:
    """Return the prompts of a file in order; `key` is the setting to blame in errors."""
    where = f"data.{key}={path}"
    prompts: list[Prompt] = []
    mistakes: dict[int, str] = {}
    # Not `splitlines`, which also splits at separators that may occur within a prompt.
    for number, line in enumerate(_read_text(where, path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            prompts.append(parse(line.strip()))
        except ConfigError as error:
            mistakes[number] = str(error)
    if mistakes:
        raise ConfigError(f"{where} {_describe(mistakes)}")
    require(bool(prompts), f"{where} holds no prompt; give one per line")
    return tuple(prompts)


def _read_text(where: str, path: str) -> str:
    file = Path(path)
    shipped = Path(assets.__file__).parent / path
    if shipped.is_file() and not file.exists():
        file = shipped
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{where} cannot be read ({error.strerror}); give a text file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def _describe(mistakes: Mapping[int, str]) -> str:
    """Say what is wrong with the first bad line, and list a few of the others."""
    first, *others = mistakes
    line = f"line {first}: {mistakes[first]}"
    if not others:
        return line
    numbers = ", ".join(map(str, others[:5]))
    if len(others) > 5:
        numbers += ", ..."
    return f"{line} ({len(others)} more: line {numbers})"
