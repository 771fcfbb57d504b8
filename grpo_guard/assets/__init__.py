"""The checkpoints that ship with the package."""

from __future__ import annotations

from pathlib import Path

from grpo_guard.types import require


def locate(key: str, model: str) -> str:
    """A shipped asset of that name, an existing folder, or a hub id left as it is; raises ConfigError otherwise."""
    shipped = Path(__file__).parent / model
    if shipped.is_dir():
        return str(shipped)
    hub = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    require(
        hub or Path(model).is_dir(),
        f"{key}={model} is no folder here; give a checkpoint folder or a hub id org/name",
    )
    return model
