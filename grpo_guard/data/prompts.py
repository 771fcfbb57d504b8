"""Prompt files: one prompt per line, as plain text or in another format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any

from grpo_guard import assets
from grpo_guard.data import Prompts, Repeats, Split
from grpo_guard.messages import warn_once
from grpo_guard.schema import Advice, ConfigError, Fraction, component, require
from grpo_guard.types import Prompt

ParseLine = Callable[[str], Prompt]
"""Parses a line that is stripped and not blank.

Raises ConfigError that says what is wrong with the line and how to fix it.
"""
_HEADINGS = {"prompt", "prompts", "caption", "captions", "text"}
"""Headings under which tables keep prompts."""
_TABLES = (".csv", ".tsv", ".parquet", ".xlsx")
"""Endings of the names of tables, whose lines are not prompts."""


@component
class PromptFile:
    """Read prompts from UTF-8 files, one prompt per line; blank lines are skipped.

    A line may also be a JSON object whose key `prompt` holds the prompt.
    """

    path: str
    """File of prompts to train on. If no such file exists, a file that ships with the package
    (`prompts/...`) is used."""
    heldout: str | None
    """File of held-out prompts, which are never trained on; null holds out a share of `path`."""
    heldout_share: Annotated[Fraction, Advice("0.05 holds out a 20th")]
    """Share of `path` that is held out if `heldout` is null, in (0, 1).

    Whether a prompt is held out depends only on its text. Equal texts stay on one side, and adding
    lines moves no other prompt.
    """
    parse: ParseLine
    """Function that parses a line."""
    prompts: Prompts
    """Number of prompts per iteration."""
    repeats: Repeats
    """Number of samples of each prompt, which are compared with each other; 2 or more."""

    def load(self) -> Split:
        """Read the files; raises ConfigError that names a file, its first bad line and a remedy."""
        prompts = _read_prompts("path", self.path, self.parse)
        if self.heldout is None:
            heldout = self._hold_out(prompts)
        else:
            heldout = _read_prompts("heldout", self.heldout, self.parse)
        texts = {prompt.text for prompt in heldout}
        train = tuple(prompt for prompt in prompts if prompt.text not in texts)
        require(
            bool(train),
            f"data.path={self.path} has only prompts that are held out;"
            " add prompts, or hold out fewer",
        )
        return Split(train=train, heldout=heldout, files=f"data.path={self.path}")

    def _hold_out(self, prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
        heldout = tuple(p for p in prompts if unit_hash(p.text) < self.heldout_share)
        require(
            bool(heldout),
            f"data.heldout_share={self.heldout_share} holds out none of the {len(prompts)} prompts"
            f" of data.path={self.path}; raise it, or give data.heldout",
        )
        return heldout


def parse_plain(line: str) -> Prompt:
    """Take the whole line as the prompt, or `prompt` of a line of JSON."""
    return Prompt(text=read_text(line))


def read_text(line: str) -> str:
    """Return `prompt` if the line is a JSON object, and any other line as it is.

    The other keys of an object, such as `negative_prompt`, are ignored with a warning: guidance
    always leads away from the empty prompt. Raises ConfigError for JSON without a prompt.
    """
    if re.match(r'\[\s*([{"\]]|$)', line):
        raise ConfigError("the line is part of a JSON list; give one object with `prompt` per line")
    if not line.startswith("{"):
        return line
    entry = load_json(line)
    # A line that begins with a brace is always an object.
    text = entry.get("prompt")
    require(
        isinstance(text, str) and bool(text.strip()),
        f"prompt={text!r} is not a text; give a string that is not blank",
    )
    for key in entry.keys() - {"prompt"}:
        warn_once(f"the key {key!r} of JSON prompts is ignored; only `prompt` is read")
    return require_unicode(str(text).strip())


def load_json(line: str) -> Any:
    """Parse a line of JSON; raises ConfigError if it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = str(error).split(":")[0]
        raise ConfigError(
            f"the line is not JSON ({reason}); give one object per line, like GenEval's metadata"
        ) from error


def require_unicode(text: str) -> str:
    """Return a text; raises ConfigError for half of a surrogate pair, which JSON can spell."""
    require(
        not re.search("[\ud800-\udfff]", text),
        f"{text!r} holds half of a surrogate pair, which no tokenizer can read; remove it",
    )
    return text


def unit_hash(text: str) -> float:
    """Hash a text to a number in [0, 1), uniform over texts.

    It must never change: with another hash, a resumed run would train on held-out prompts.
    """
    return int.from_bytes(blake2b(text.encode(), digest_size=6).digest()) / 2**48


def _read_prompts(key: str, path: str, parse: ParseLine) -> tuple[Prompt, ...]:
    """Return the prompts of a file in order; `key` is the setting to blame in errors."""
    where = f"data.{key}={path}"
    prompts: list[Prompt] = []
    mistakes: dict[int, str] = {}
    for number, line in read_lines(where, path):
        try:
            prompts.append(parse(line))
        except ConfigError as error:
            mistakes[number] = str(error)
    if mistakes:
        raise ConfigError(f"{where} {_describe_mistakes(mistakes)}")
    return tuple(prompts)


def read_lines(where: str, path: str) -> list[tuple[int, str]]:
    """Return (number, stripped line) of the lines of a file of prompts that are not blank.

    `where` names the setting and the file in messages. If there is no such file, one that ships
    with the package is read. Raises ConfigError if the file cannot be read, is no text, is a table
    or holds no prompt.
    """
    # Not `splitlines`, which also splits at separators that may occur within a prompt.
    numbered = enumerate(_read_file(where, path).split("\n"), start=1)
    lines = [(number, line.strip()) for number, line in numbered if line.strip()]
    require(bool(lines), f"{where} holds no prompt; give one per line")
    number, first = lines[0]
    cells = [cell.strip(" \"'").lower() for cell in re.split(r"[,;\t]", first)]
    is_header = bool(_HEADINGS & set(cells)) and all(map(str.isidentifier, cells))
    require(
        not is_header and Path(path).suffix.lower() not in _TABLES,
        f"{where} is a table (line {number}: {first[:60]!r}); give one prompt per line, without a"
        " header, or JSON lines with `prompt`",
    )
    return lines


def _read_file(where: str, path: str) -> str:
    file = Path(path)
    shipped = Path(assets.__file__).parent / path
    try:
        if shipped.is_file() and not file.exists():
            file = shipped
            warn_once(f"{where} is a sample for a first try; give a file of your own")
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{where} cannot be read ({error.strerror}); give a text file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    require("\0" not in text, f"{where} is not UTF-8 text (it holds zero bytes); save it as UTF-8")
    return text


def _describe_mistakes(mistakes: Mapping[int, str]) -> str:
    """Say what is wrong with the first bad line, and list a few of the others."""
    first, *others = mistakes
    line = f"line {first}: {mistakes[first]}"
    if not others:
        return line
    numbers = ", ".join(map(str, others[:5]))
    if len(others) > 5:
        numbers += ", ..."
    return f"{line} ({len(others)} more: line {numbers})"
