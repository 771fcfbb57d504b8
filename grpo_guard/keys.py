"""The key of a setting before what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from grpo_guard.schema import ConfigError


@contextmanager
def name_key(prefix: str) -> Iterator[None]:
    """Put the key of a part, such as "reward.", before what is wrong with it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error
