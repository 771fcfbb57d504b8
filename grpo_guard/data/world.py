"""Captions of the synthetic world."""

from __future__ import annotations

from grpo_guard.data import Prompts, Repeats, Split
from grpo_guard.schema import component, require
from grpo_guard.world import captions


@component
class World:
    """Draw captions of the synthetic world; some combinations of things are held out."""

    prompts: Prompts
    """Number of captions per iteration."""
    repeats: Repeats
    """Number of samples of each caption, which are compared with each other; 2 or more."""
    families: list[str]
    """Kinds of captions to draw from: shapes, words, mixtures."""

    def __post_init__(self) -> None:
        known = list(captions.FAMILIES)
        unknown = [family for family in self.families if family not in known]
        require(not unknown, f"families={unknown} are unknown; choose from {known}")
        require(bool(self.families), f"families=[] is empty; choose from {known}")

    def load(self) -> Split:
        """Return all captions of the families."""
        return Split(
            train=captions.all_prompts(self.families, heldout=False),
            heldout=captions.all_prompts(self.families, heldout=True),
            in_turn=True,
        )
