"""Advantages by group, from the scores of all samples."""

from __future__ import annotations

import numpy as np

from grpo_guard.command.verification.kept import Booleans, Integers, Kept, Numbers
from grpo_guard.command.verification.settings import choose, last_name

EPSILON = 1e-4
"""What advantages add to every standard deviation."""


def compute_advantages(kept: Kept) -> dict[int, Numbers]:
    """Return the advantages by group, each in the order of the samples' numbers.

    Raises ConfigError for a rule that is not known here.
    """
    recipe = kept.config["advantage"]
    while last_name(recipe) == "Shuffled":
        recipe = recipe["rule"]
    choose("advantage", {"Group": None}, last_name(recipe))
    rewards = kept.rewards
    signals = {"total": (1.0, rewards.total)}
    if recipe["aggregate"] == "per_reward":
        signals = {
            name: (weight, rewards.parts[name])
            for name, weight in rewards.weights.items()
            if weight
        }
    advantage = np.zeros_like(rewards.total)
    for weight, scores in signals.values():
        advantage += weight * _normalize(scores, rewards.group, ~rewards.failed, recipe["std"])
    bound = recipe["clamp"]
    advantage = np.clip(advantage, -bound, bound)
    return {int(group): advantage[rewards.group == group] for group in np.unique(rewards.group)}


def _normalize(scores: Numbers, group: Integers, kept: Booleans, std: str) -> Numbers:
    """Return (score - mean of the group) / (std + epsilon); 0 where a sample failed."""
    result = np.zeros_like(scores)
    overall = scores[kept].std() if kept.any() else 0.0
    for number in np.unique(group):
        members = (group == number) & kept
        if members.any():
            centred = scores[members] - scores[members].mean()
            spread = {"group": scores[members].std(), "global": overall}.get(std)
            result[members] = centred if spread is None else centred / (spread + EPSILON)
    return result
