"""The settings that torch's optimizers share, and their ranges, without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_guard.schema import NonNegative, check_value

_RANGES = {"lr": NonNegative, "weight_decay": NonNegative}


def check_optimizer_settings(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError if the learning rate or the weight decay is out of range."""
    for name, hint in _RANGES.items():
        if name in settings:
            check_value(f"optim.{name}", settings[name], hint)
