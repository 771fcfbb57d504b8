"""Prompt files: one prompt per line, as plain text or in a format of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path

from grpo_guard import assets
from grpo_guard.data import Split
from grpo_guard.types import ConfigError, Prompt, component, require

Parse = Callable[[str], Prompt]
"""Reads a line, stripped and not blank; raises ConfigError, saying what is wrong with the line and the remedy."""


@component
class Lines:
    """UTF-8 files of one prompt per line, blank lines skipped; those of `path` are trained on unless held out.

    Held out are the prompts of the file `heldout` or, where that is null, a `heldout_share` of `path`, chosen by their
    texts: equal texts are on one side, and adding lines moves no others. A name that is no file here may be a shipped
    one's (`prompts/...`). `parse` reads a line.
    """

    path: str
    heldout: str | None
    heldout_share: float
    parse: Parse
    prompts: int
    repeats: int

    def __post_init__(self) -> None:
        require(self.prompts > 0, f"prompts={self.prompts} is not positive")
        require(
            self.repeats > 1,
            f"repeats={self.repeats} leaves nothing to compare in a group; give 2 or more",
        )
        require(
            0 < self.heldout_share < 1,
            f"heldout_share={self.heldout_share} is outside (0, 1); 0.05 holds out a 20th",
        )

    def load(self) -> Split:
        """Read the files; raises ConfigError naming the file, its first bad line and the remedy."""
        given = _read("path", self.path, self.parse)
        heldout = (
            self._share(given)
            if self.heldout is None
            else _read("heldout", self.heldout, self.parse)
        )
        texts = {prompt.text for prompt in heldout}
        train = tuple(prompt for prompt in given if prompt.text not in texts)
        require(
            bool(train),
            f"data.path={self.path} has no prompt that is not held out; give more, or hold out fewer",
        )
        return Split(train=train, heldout=heldout)

    def _share(self, given: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
        """Those whose place is below the share."""
        heldout = tuple(prompt for prompt in given if place(prompt.text) < self.heldout_share)
        require(
            bool(heldout),
            f"data.heldout_share={self.heldout_share} holds out none of the {len(given)} prompts of data.path="
            f"{self.path}; raise it, or give data.heldout",
        )
        return heldout


def plain(line: str) -> Prompt:
    """All of the line is the prompt."""
    return Prompt(text=line)


def place(text: str) -> float:
    """A text's own place in [0, 1), uniform over texts."""
    return int.from_bytes(blake2b(text.encode(), digest_size=6).digest()) / 2**48


def _read(key: str, path: str, parse: Parse) -> tuple[Prompt, ...]:
    """The prompts of a file, in its order."""
    where = f"data.{key}={path}"
    prompts: list[Prompt] = []
    refused: dict[int, str] = {}
    for number, line in enumerate(_text(where, path).split("\n"), start=1):
        if line.strip():
            try:
                prompts.append(parse(line.strip()))
            except ConfigError as error:
                refused[number] = str(error)
    if refused:
        raise ConfigError(f"{where} {_first(refused)}")
    require(bool(prompts), f"{where} holds no prompt; give one per line")
    return tuple(prompts)


def _text(where: str, path: str) -> str:
    here, shipped = Path(path), Path(assets.__file__).parent / path
    try:
        return (shipped if shipped.is_file() and not here.exists() else here).read_text(
            encoding="utf-8-sig"
        )
    except OSError as error:
        raise ConfigError(f"{where} cannot be read ({error.strerror}); give a text file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def _first(refused: Mapping[int, str]) -> str:
    """Why the first line is refused, and which others are."""
    first, *others = refused
    listed = ", ".join(map(str, others[:5])) + ", ..." * (len(others) > 5)
    return f"line {first}: {refused[first]}" + f" ({len(others)} more: line {listed})" * bool(
        others
    )
