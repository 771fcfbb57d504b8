"""Values on a command line, quoted as the grammar of Hydra's overrides wants them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from grpo_guard.schema import SECRETS, ConfigError, hide_secrets

FindKnown = Callable[[], Mapping[str, Any]]
"""Returns the settings with their values; called only if an override cannot be judged without."""
WORDS = {"microbatch": "auto"}
"""The word that a setting whose default is a number takes as well."""


def quote(value: str) -> str:
    """Quote a value, so that an override with it means exactly this text."""
    # OmegaConf reads ${...} even in a quoted value.
    return _add_quotes(value.replace("${", r"\${"))


def quote_override(word: str) -> str:
    """Quote the value of an override that a user wrote, if it is plainly meant as a text.

    That is a value that the grammar cannot read (`output=runs/a=b`), and a path with commas, which
    would otherwise be a sweep: one that exists, or that of `output`. A reference such as ${seed}
    stays one.
    """
    key, equals, value = word.partition("=")
    if not equals or key.startswith("-"):
        return word
    override = _parse(word)
    if override is not None:
        is_path = key.lstrip("+") == "output" or os.path.exists(value)
        if not (override.is_sweep_override() and is_path):
            return word
    quoted = f"{key}={_add_quotes(value)}"
    return word if _parse(quoted) is None else quoted


def check_options(words: Sequence[str], sweeps: bool = True) -> None:
    """Raise ConfigError for an option that Hydra does not have; it would print all that it has.

    Also for -m, unless the command can run a sweep.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists the options")

    parser.error = refuse  # type: ignore[method-assign]
    if parser.parse_args(words).multirun and not sweeps:
        raise ConfigError(
            "-m runs several jobs, but this command is one that does not end; leave"
            " -m out, and start the command once for each choice"
        )


def check_overrides(words: Sequence[str], conf: Path, find_known: FindKnown) -> None:
    """Raise ConfigError for an override that cannot be meant, before anything is composed."""
    for word in words:
        check_choice(word, conf)
        check_number(word, find_known)


def check_choice(word: str, conf: Path) -> None:
    """Raise ConfigError for an override that Hydra's composition would answer with a traceback.

    The value of a group, a folder of `conf`, must be the name of a choice, or a list of names.
    """
    override = _parse(word)
    if override is None or override.is_sweep_override() or override.is_delete():
        return
    key = override.get_key_element()
    if key.startswith("hydra.run."):
        raise ConfigError(f"{key} is set by this program; give output= for the run folder")
    group, _, _ = key.lstrip("+").partition("@")
    if not (conf / group).is_dir():
        return
    value = override.value()
    names = value if isinstance(value, list) and value else [value]
    if all(isinstance(name, str | QuotedString) for name in names):
        return
    example = min(path.stem for path in (conf / group).glob("*.yaml"))
    raise ConfigError(
        f"{word} is no choice of {group}; give the name of a file in conf/{group}, such as"
        f" {example}, or leave it out"
    )


def check_number(word: str, find_known: FindKnown) -> None:
    """Raise ConfigError for a text, or true or false, where a setting is a number."""
    override = _parse(word)
    if override is None or override.is_sweep_override() or override.is_delete():
        return
    key, value = override.get_key_element(), override.value()
    is_other = isinstance(value, str | QuotedString | bool) and "${" not in str(value)
    if not is_other or key.startswith(("hydra.", "+", "output")) or "@" in key:
        return
    default = find_known().get(key)
    if type(default) in (int, float) and value != WORDS.get(key):
        raise ConfigError(f"{word} is no number; give one, such as {default:g}")


def is_choice(word: str, conf: Path) -> bool:
    """Return whether an override names one choice of a group, a folder of `conf`."""
    override = _parse(word)
    if override is None or override.is_sweep_override() or override.is_delete():
        return False
    group, _, _ = override.get_key_element().lstrip("+").partition("@")
    return (conf / group / f"{override.value()}.yaml").is_file()


def hide_secret(override: str) -> str:
    """Return an override to print, without its value if that may be a secret."""
    key, equals, _ = override.partition("=")
    return f"{key}=..." if equals and key.endswith(SECRETS) else hide_secrets(override)


def _add_quotes(value: str) -> str:
    return QuotedString(text=value, quote=Quote.single).with_quotes()


def _parse(word: str) -> Override | None:
    """Return what the grammar makes of an override; None if it cannot read it."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None
