"""Tokens of servers, which settings name by the environment variable that holds them."""

from __future__ import annotations

import os
import re

from grpo_guard.schema import require

_NO_VARIABLE = (
    "is the name of an environment variable, and there is none of the name that was set (it is not"
    " shown: it may be the token itself); put the token into a variable and give its name"
)


def check_token_name(variable: str | None) -> None:
    """Raise ConfigError, without the value, if it cannot be the name of an environment variable.

    People give the token itself by mistake, and messages end in logs.
    """
    require(
        variable is None or re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable) is not None,
        f"token {_NO_VARIABLE}",
    )


def read_token(variable: str | None) -> str:
    """Return the token in an environment variable, or "" if no variable is named.

    Raises ConfigError if the variable is not set or holds more than an HTTP header can.
    """
    if variable is None:
        return ""
    check_token_name(variable)
    token = os.environ.get(variable, "")
    require(bool(token), f"token {_NO_VARIABLE}")
    require(
        token.isascii() and token.isprintable() and " " not in token,
        f"token={variable} holds more than printable ASCII without spaces; choose another token",
    )
    return token
