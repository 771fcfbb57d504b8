"""Exit codes, and exceptions as one line that a user can act on."""

from __future__ import annotations

import contextlib
import errno
import re
import traceback
from collections.abc import Iterator

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from grpo_guard.console.suggestions import ListKeys, explain_override
from grpo_guard.schema import ConfigError, RunError

FAILED = 1
"""Exit code if a run failed, or at least one job of a multirun."""
REFUSED = 2
"""Exit code if a setting cannot be used."""
RESUMABLE = 75
"""Exit code if a run stopped on request and the same command resumes it.

The number is EX_TEMPFAIL of sysexits.h: "the user is invited to retry".
"""
INTERRUPTED = 130
"""Exit code after a second Ctrl-C, or a first one outside of training; 128 + SIGINT."""

MISTAKES = (ConfigError, HydraException, OmegaConfBaseException)
"""Exceptions that mean that a setting cannot be used."""


def explain_failure(error: BaseException) -> str:
    """Say in one line why a job failed; print the traceback of an error that nobody foresaw."""
    if isinstance(error, MISTAKES):
        return explain_mistake(error)
    if isinstance(error, RunError):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def explain_mistake(error: BaseException, list_keys: ListKeys = tuple) -> str:
    """Say in one line which setting cannot be used and why.

    Hydra wraps what a component raises. The line then consists of the key, which Hydra knows, and
    the message of the innermost ConfigError. `list_keys` lists the settings that there are.
    """
    message = None
    if isinstance(error, HydraException):
        override = explain_override(str(error), list_keys)
        if override:
            return override
        causes: list[BaseException] = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        mistakes = [cause for cause in causes if isinstance(cause, ConfigError)]
        message = str(mistakes[-1]) if mistakes else _explain_arguments(str(causes[-1]))
        message = message or _explain_target(str(error))
    if message is None:
        return " ".join(str(error).split())
    key = re.search(r"^full_key: (.+)$", str(error), re.MULTILINE)
    if not key:
        return message
    # A message about the environment does not begin with a setting, so nothing joins it to the key.
    return f"{key[1]}: {message}" if message[0].isupper() else f"{key[1]}.{message}"


@contextlib.contextmanager
def report_full_disk() -> Iterator[None]:
    """Raise RunError instead of OSError if a disk is full: the newest whole state remains."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f" ({error.filename})" if error.filename else ""
        raise RunError(
            f"{error.strerror}{place}; make room, and the same command continues"
        ) from error


def _explain_arguments(message: str) -> str | None:
    """Translate Python's complaint about a constructor's arguments into one about keys."""
    if re.search(r"missing \d+ required positional arguments?", message):
        return "_partial_ is missing; add _partial_: true"
    missing = re.search(
        r"missing (?:a required argument|\d+ required keyword-only arguments?): (.+)", message
    )
    if missing:
        keys = missing[1].replace("'", "")
        return f"{keys} is missing; add it as in the output of scripts/train.py --cfg job"
    unknown = re.search(r"got an unexpected keyword argument '(\w+)'", message)
    if unknown:
        return f"{unknown[1]} is unknown; remove it"
    if re.search(r"takes \d+ positional arguments?|Unsupported _args_ type", message):
        return "_args_ cannot be used; give every setting by its name"
    return None


def _explain_target(message: str) -> str | None:
    """Translate Hydra's complaint that there is no class or function of a name."""
    missing = re.match(
        r"(?:Error locating target|Error loading|Expected a callable target, got) '(.*?)'",
        message,
        re.DOTALL,
    )
    if missing is None:
        return None
    target = f"_target_={' '.join(missing[1].split())[:100]}"
    module = re.search(r"No module named '(.+?)'", message)
    if module:
        return f"{target} needs the module {module[1]}, which is not installed"
    return f"{target} is no class or function; give one as in conf/"
