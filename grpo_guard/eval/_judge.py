"""Rewards as judges of an evaluation: each scores the pictures whose prompts it accepts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from grpo_guard.metrics import Metrics, mean
from grpo_guard.reward import Reward, Scorer, make_filter
from grpo_guard.schema import record, require
from grpo_guard.types import ImageScores, Prompt, Rewards


@record
class Judge:
    """A loaded reward and the rows of the prompts that it accepts."""

    role: str
    """Which prompts it judges: "" for those held out, "train/" for those trained on."""
    gold: str | None
    """The name of a gold; None: it is the proxy."""
    reward: Reward
    """The component."""
    score: Scorer
    """Its scorer."""
    accepted: Sequence[int]
    """Rows of the prompts that it accepts, ascending."""

    @property
    def name(self) -> str:
        """Name of the judge, such as "proxy", "gold/<name>" or "train/gold/<name>"."""
        return f"{self.role}proxy" if self.gold is None else f"{self.role}gold/{self.gold}"

    @property
    def prefix(self) -> str:
        """Beginning of the keys of its scores, such as "eval/proxy" or "eval/train/gold"."""
        return f"eval/{self.role}{'proxy' if self.gold is None else 'gold'}"

    @property
    def setting(self) -> str:
        """The setting that chose its reward."""
        return "reward" if self.gold is None else f"eval.gold.{self.gold}"

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Judgement:
        """Score the images whose prompts are accepted."""
        rows = list(self.accepted)
        rewards = self.score(images[rows], [prompts[row] for row in rows])
        return Judgement(judge=self, rewards=rewards)


@record
class Judgement:
    """What a judge says of the pictures that it accepts."""

    judge: Judge
    """The judge."""
    rewards: Rewards
    """One row for each of `judge.accepted`, in order."""

    @property
    def metrics(self) -> Metrics:
        """Mean scores, and the share of the pictures that could not be scored.

        A reward that compares pictures cannot score the only picture of a prompt, so its failures
        are not counted.
        """
        judge = self.judge
        scores = {f"{judge.prefix}/{key}": mean(part) for key, part in self.rewards.parts.items()}
        if judge.reward.compares:
            return scores
        return {**scores, f"eval/failed/{judge.name}": mean(self.rewards.failed.float())}

    def scores_of(self, row: int) -> ImageScores:
        """Return the scores and notes of one picture; they are empty if it was not accepted."""
        judge = self.judge
        rewards = self.rewards
        if row not in judge.accepted:
            return ImageScores(scores={}, notes={})
        at = judge.accepted.index(row)
        scores = {f"{judge.prefix}/{key}": part[at].item() for key, part in rewards.parts.items()}
        notes = {f"eval/{judge.name}": rewards.notes[at]} if rewards.notes else {}
        return ImageScores(scores=scores, notes=notes)


def require_own_parts(judgements: Sequence[Judgement]) -> None:
    """Raise ConfigError if two golds give a score of one name: the two would become one number."""
    owners: dict[str, Judge] = {}
    for judgement in judgements:
        judge = judgement.judge
        for part in judgement.rewards.parts:
            owner = owners.setdefault(f"{judge.prefix}/{part}", judge)
            require(
                owner is judge,
                f"{owner.setting} and {judge.setting} both give {part}, which is one number in the"
                " logs; leave one of them out, or give one another name, if it has that setting",
            )


def merge_scores(judgements: Sequence[Judgement], row: int) -> ImageScores:
    """Return what all judges say of one picture."""
    scores: dict[str, float] = {}
    notes: dict[str, tuple[str, ...]] = {}
    for judgement in judgements:
        part = judgement.scores_of(row)
        scores |= part.scores
        notes |= part.notes
    return ImageScores(scores=scores, notes=notes)


def scores_by_prompt(judgements: Sequence[Judgement], count: int) -> dict[str, list[float]]:
    """Return the scores of `count` prompts by metric key; NaN where a reward gave none."""
    scores: dict[str, list[float]] = {}
    for judgement in judgements:
        judge = judgement.judge
        for key, part in judgement.rewards.parts.items():
            row = scores.setdefault(f"{judge.prefix}/{key}", [math.nan] * count)
            for prompt, value in zip(judge.accepted, part.tolist(), strict=True):
                row[prompt] = value
    return scores


def join_prompts(
    parts: Sequence[Mapping[str, Sequence[float]]], count: int
) -> dict[str, list[float]]:
    """Join the scores of the prompts of several processes, which have `count` prompts each.

    A process has no scores of a reward that accepts none of its prompts.
    """
    missing = [math.nan] * count
    keys = dict.fromkeys(key for part in parts for key in part)
    return {key: [value for part in parts for value in part.get(key, missing)] for key in keys}


def accepted_rows(key: str, reward: Reward, prompts: Sequence[Prompt]) -> list[int]:
    """Return the rows of the prompts that the reward of this setting can score."""
    accepts = make_filter(key, reward)
    return [row for row, prompt in enumerate(prompts) if accepts(prompt)]
