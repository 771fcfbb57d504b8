"""How well the shipped scorers judge pictures, measured as a run reads them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from grpo_guard.reward import Scorer
from grpo_guard.reward.clip import ClipReward, pickscore
from grpo_guard.reward.clip_formats import open_clip_folder
from grpo_guard.types import Prompt
from grpo_guard.world import captions, render
from tiny.pictures import DEVICE, render_captions

PAIRS = 1024


def load_shipped_scorer(folder: Path) -> Scorer:
    """Load a scorer as conf/reward/pickscore.yaml does."""
    reward = ClipReward(
        model=str(folder),
        read=partial(open_clip_folder),
        measure=partial(pickscore),
        scale=None,
        microbatch=64,
        dtype="float32",
        name="pickscore",
    )
    return reward.load(DEVICE)


def share_right_captions(score: Scorer, seed: int = 60) -> Tensor:
    """Return for each held-out picture whether its caption scores higher than another one."""
    prompts, images = render_captions(seed, PAIRS, heldout=True)
    rng = np.random.default_rng(seed)
    others = [prompts[i] for i in rng.permutation(PAIRS)]
    differ = torch.tensor([a.text != b.text for a, b in zip(prompts, others, strict=True)])
    pictures = to_unit(images)
    return (score(pictures, prompts).total > score(pictures, others).total).cpu()[differ]


def share_nothing_too_much(score: Scorer, seed: int = 61) -> Tensor:
    """Return for each held-out caption of two things whether the second one lowers the score.

    The caption names the first thing alone. A picture of it is compared with a picture of both.
    """
    rng = np.random.default_rng(seed)
    pairs = [p for p in captions.all_prompts(heldout=True) if has_two_free_things(p)]
    both = [pairs[i] for i in rng.integers(0, len(pairs), PAIRS)]
    alone = [keep_first(prompt) for prompt in both]
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


MEASURES: dict[str, Callable[[Scorer], Tensor]] = {
    "right caption": share_right_captions,
    "nothing too much": share_nothing_too_much,
}
"""What is measured of a scorer: how often it is right, by name."""
