"""The checkpoints, scorers and sample prompts that ship with the package."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from grpo_guard.schema import require


def locate(key: str, model: str) -> str:
    """Return the folder of a shipped model, an existing folder, or a hub id unchanged.

    Raises ConfigError, which names `key`, if `model` is none of these.
    """
    shipped = Path(__file__).parent / model
    if shipped.is_dir():
        return str(shipped)
    is_hub_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    require(
        is_hub_id or Path(model).is_dir(),
        f"{key}={model} is no folder here; give a checkpoint folder or a hub id org/name",
    )
    return model


@cache
def read_architectures() -> dict[str, Any]:
    """Return what is known of published networks without their weights.

    `models` and `parts` hold configurations by hub id, `scorers` numbers of parameters by hub id.
    """
    file = Path(__file__).parent / "architectures.json"
    architectures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return architectures
