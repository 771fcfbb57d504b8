"""Fine-tune flow-matching text-to-image models by reinforcement learning.

`compose(overrides)` returns an experiment, and `run(overrides)` trains it, as `grpo-guard train`
does. The loop itself is `grpo_guard.train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpo_guard.experiment import Experiment

__version__ = "0.2.0"
"""The version of the package; pyproject.toml reads it from here."""


def compose(overrides: Sequence[str] = ()) -> Experiment:
    """Return the experiment of some overrides: see `grpo_guard.command.python.compose`."""
    from grpo_guard.command import python

    return python.compose(overrides)


def run(overrides: Sequence[str] = ()) -> Path:
    """Train, and return the run folder: see `grpo_guard.command.python.run`."""
    from grpo_guard.command import python

    return python.run(overrides)
