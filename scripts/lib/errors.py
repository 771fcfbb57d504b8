"""Turns an exception into one line that a user can act on."""

from __future__ import annotations

import re
import traceback

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from grpo_guard.schema import ConfigError, RunError

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


def explain_mistake(error: BaseException) -> str:
    """Say in one line which setting cannot be used and why.

    Hydra wraps what a component raises. The line then consists of the key, which Hydra knows, and
    the message of the innermost exception.
    """
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    message = None
    if isinstance(error, HydraException):
        if isinstance(cause, ConfigError):
            message = str(cause)
        elif isinstance(cause, TypeError):
            message = _explain_arguments(str(cause))
    if message is None:
        return " ".join(str(error).split())
    key = re.search(r"^full_key: (.+)$", str(error), re.MULTILINE)
    return f"{key[1]}.{message}" if key else message


def _explain_arguments(message: str) -> str | None:
    """Translate Python's complaint about a constructor's arguments into one about keys."""
    missing = re.search(
        r"missing (?:a required argument|\d+ required keyword-only arguments?): (.+)", message
    )
    if missing:
        keys = missing[1].replace("'", "")
        return f"{keys} is missing; add it as in the output of scripts/train.py --cfg job"
    unknown = re.search(r"got an unexpected keyword argument '(\w+)'", message)
    return f"{unknown[1]} is unknown; remove it" if unknown else None
