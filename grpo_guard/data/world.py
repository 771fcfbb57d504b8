"""Captions of the synthetic world."""

from __future__ import annotations

from grpo_guard.data import Split
from grpo_guard.types import component, require
from grpo_guard.world import captions


@component
class World:
    """Captions of some families (shapes, words, mixtures); some combinations of their words are held out."""

    prompts: int
    repeats: int
    families: list[str]

    def __post_init__(self) -> None:
        require(self.prompts > 0, f"prompts={self.prompts} is not positive")
        require(
            self.repeats > 1,
            f"repeats={self.repeats} leaves nothing to compare in a group; give 2 or more",
        )
        unknown = [f for f in self.families if f not in captions.FAMILIES]
        require(
            not unknown, f"families={unknown} are unknown; choose from {list(captions.FAMILIES)}"
        )
        require(bool(self.families), f"families=[] is empty; choose from {list(captions.FAMILIES)}")

    def load(self) -> Split:
        """Every caption of the families."""
        train, heldout = (
            tuple(captions.prompts(self.families, heldout=side)) for side in (False, True)
        )
        return Split(train=train, heldout=heldout, in_turn=True)
