"""How well the shipped scorers judge pictures, measured as a run reads them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from grpo_guard.reward import Reward
from grpo_guard.reward.clip import ClipReward, pickscore
from grpo_guard.reward.clip_formats import open_clip_folder
from grpo_guard.reward.geneval import GenEval
from grpo_guard.reward.world_detector import WorldDetector
from grpo_guard.types import Prompt
from grpo_guard.world import captions, render
from tiny.pictures import DEVICE, render_captions

PAIRS = 1024


def make_shipped_rewards(folder: Path) -> dict[str, Reward]:
    """Return a reward for every scorer of a folder, and GenEval's accuracy, by their names."""
    rewards: dict[str, Reward] = {
        path.name: make_shipped_reward(path) for path in sorted(folder.glob("scorer_*"))
    }
    return rewards | {"GenEval accuracy": GenEval(detector=WorldDetector(), measure="accuracy")}


def make_shipped_reward(folder: Path) -> ClipReward:
    """Return the reward of a scorer as conf/reward/pickscore.yaml has it."""
    return ClipReward(
        model=str(folder),
        read=partial(open_clip_folder),
        measure=partial(pickscore),
        scale=None,
        microbatch=64,
        dtype="float32",
        name="pickscore",
    )


def share_right_captions(reward: Reward, seed: int = 60) -> Tensor:
    """Return for each held-out picture whether its caption scores higher than another one.

    Captions that the reward does not accept are left out.
    """
    drawn, images = render_captions(seed, PAIRS, heldout=True)
    kept = [i for i, prompt in enumerate(drawn) if reward.accepts(prompt)]
    prompts = [drawn[i] for i in kept]
    rng = np.random.default_rng(seed)
    others = [prompts[i] for i in rng.permutation(len(prompts))]
    differ = torch.tensor([a.text != b.text for a, b in zip(prompts, others, strict=True)])
    pictures = to_unit(images[kept])
    score = reward.load(DEVICE)
    return (score(pictures, prompts).total > score(pictures, others).total).cpu()[differ]


def share_nothing_too_much(reward: Reward, seed: int = 61) -> Tensor:
    """Return for each held-out caption of two things whether the second one lowers the score.

    The caption names the first thing alone. A picture of it is compared with a picture of both.
    Captions that the reward does not accept are left out.
    """
    rng = np.random.default_rng(seed)
    free = filter(has_two_free_things, captions.all_prompts(heldout=True))
    pairs = [prompt for prompt in free if reward.accepts(prompt)]
    both = [pairs[i] for i in rng.integers(0, len(pairs), PAIRS)]
    alone = [keep_first(prompt) for prompt in both]
    score = reward.load(DEVICE)
    totals = [score(to_unit(render.render(drawn, rng)), alone).total for drawn in (alone, both)]
    return (totals[0] > totals[1]).cpu()


def has_two_free_things(prompt: Prompt) -> bool:
    """Return whether a prompt asks for two things wherever they are."""
    return len(prompt.include) == 2 and all(clause.position is None for clause in prompt.include)


def keep_first(prompt: Prompt) -> Prompt:
    """Return a prompt of the first thing alone."""
    return Prompt(text=captions.describe_first(prompt), include=prompt.include[:1])


def to_unit(images: np.ndarray) -> Tensor:
    """Convert uint8 (N, H, W, 3) to floats (N, 3, H, W) in [0, 1] on the device."""
    return torch.from_numpy(images).to(DEVICE).permute(0, 3, 1, 2).float() / 255


MEASURES: dict[str, Callable[[Reward], Tensor]] = {
    "right caption": share_right_captions,
    "nothing too much": share_nothing_too_much,
}
"""What is measured of a scorer: how often it is right, by name."""
