"""Evaluation on held-out prompts with fixed noise per prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.backbone import Model
from grpo_guard.data import Split, draw
from grpo_guard.eval import NOTHING, Evaluate, Evaluation, Proxy
from grpo_guard.final_steps.euler import Euler
from grpo_guard.metrics import Clock, Metrics, mean, merge
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.reward import Reward, Scorer
from grpo_guard.rollout import replay_steps, rollout
from grpo_guard.sde import schedule
from grpo_guard.sde.ode import Ode
from grpo_guard.types import (
    Batch,
    Prompt,
    Rewards,
    Rows,
    Trajectory,
    Verdict,
    component,
    map_tensors,
    record,
    require,
)


@component
class HeldOut:
    """`prompts` held-out prompts, one ODE sample of `steps` steps each, every `every` iterations and at both ends.

    Prompts and noise depend on `seed` alone, so that runs are compared on the same pictures; the first `pictures` of
    them are kept. `gold` names rewards that nothing is trained on; each scores the prompts it accepts. With `kl`, the
    distance from the model as it was loaded is measured too, which costs a frozen copy where there are no adapters.
    Without `keep_gold`, golds are loaded anew for every evaluation, one after the other, and hold no memory between.
    """

    prompts: int
    steps: int
    every: int
    pictures: int
    microbatch: int
    seed: int
    kl: bool
    keep_gold: bool
    gold: Mapping[str, Reward]

    def __post_init__(self) -> None:
        for key in ("prompts", "steps", "every", "pictures", "microbatch"):
            require(getattr(self, key) > 0, f"{key}={getattr(self, key)} is not positive")
        require(
            self.pictures <= self.prompts,
            f"pictures={self.pictures} is more than prompts={self.prompts}",
        )

    def load(
        self, model: Model, split: Split, proxy: Proxy, ranks: Ranks, iterations: int
    ) -> Evaluate:
        """Encode the prompts once and load the gold rewards."""
        prompts, batch = self._plan(split, ranks)
        asked = batch.prompts_by_sample()
        accepted = {name: _accepted(reward, asked) for name, reward in self.gold.items()}
        golds = {
            name: self._scorer(self.gold[name], ranks.device)
            for name, kept in accepted.items()
            if kept
        }
        judges = [
            _Judge(
                name="eval/proxy", reward=proxy.reward, score=proxy.score, kept=range(len(asked))
            )
        ] + [
            _Judge(
                name=f"eval/gold/{name}", reward=self.gold[name], score=score, kept=accepted[name]
            )
            for name, score in golds.items()
        ]
        draw_all = self._painter(model, batch, ranks.device)
        distance = _distance(model, self.microbatch) if self.kl else lambda trajectory: {}

        def evaluate(iteration: int) -> Evaluation:
            if iteration % self.every and iteration != iterations:
                return NOTHING
            clock = Clock()
            with clock("eval"):
                trajectory = draw_all()
                images = model.decode(trajectory.sample)
                said = [judge(images, asked) for judge in judges]
                found = [*(part.metrics for part in said), distance(trajectory)]
                shown = (batch.sample < self.pictures).nonzero().flatten()
                pictures = ranks.all_gather_rows(images[shown], "evaluation")
                verdicts = ranks.all_gather(
                    [_verdict(said, row) for row in shown.tolist()], "evaluation"
                )
            return Evaluation(
                metrics=merge([*found, clock.times()]),
                images=pictures,
                captions=tuple(p.text for p in prompts[: self.pictures]),
                verdicts=tuple(chain.from_iterable(verdicts)),
            )

        return evaluate

    def _scorer(self, gold: Reward, device: torch.device) -> Scorer:
        """A gold's; loaded at once in any case, so that what is missing is told before training."""
        score = gold.load(device)
        return (
            score if self.keep_gold else lambda images, prompts: gold.load(device)(images, prompts)
        )

    def _plan(self, split: Split, ranks: Ranks) -> tuple[tuple[Prompt, ...], Batch]:
        """All prompts, and this process's part of them."""
        require(
            self.prompts % ranks.processes == 0,
            f"eval.prompts={self.prompts} do not divide among {ranks.processes} processes; nearest that does:"
            f" {max(1, round(self.prompts / ranks.processes)) * ranks.processes}",
        )
        prompts = draw(split.heldout, split.in_turn, range(self.prompts), self.seed, "eval")
        mine = torch.arange(len(prompts), device=ranks.device).chunk(ranks.processes)[ranks.rank]
        return prompts, Batch(prompts=prompts, group=mine, sample=mine, total=len(prompts))

    def _painter(
        self, model: Model, batch: Batch, device: torch.device
    ) -> Callable[[], Trajectory]:
        """Samples the same prompts from the same noise whenever it is called."""
        condition = model.encode([p.text for p in batch.prompts])
        steps = map_tensors(schedule(Ode(), model.times(self.steps)), lambda x: x.to(device))
        return lambda: rollout(
            model.policy,
            steps,
            batch,
            condition,
            model.shape,
            address=(self.seed, -1),
            microbatch=self.microbatch,
            final_steps=Euler(),
        )


@record
class _Said:
    """What a judge gives for those rows of the images, in order, whose prompts it accepts."""

    judge: _Judge
    rewards: Rewards

    @property
    def metrics(self) -> Metrics:
        """Scores, and the share of those that failed; one that compares pictures has none of a prompt's only one."""
        judge = self.judge
        scores = {
            f"{judge.prefix}/{name}": mean(values) for name, values in self.rewards.parts.items()
        }
        failed = {
            f"eval/failed/{judge.name.removeprefix('eval/')}": mean(self.rewards.failed.float())
        }
        return scores if judge.reward.compares else scores | failed

    def of(self, row: int) -> Verdict:
        judge, rewards = self.judge, self.rewards
        if row not in judge.kept:
            return Verdict(scores={}, notes={})
        at = judge.kept.index(row)
        scores = {
            f"{judge.prefix}/{name}": values[at].item() for name, values in rewards.parts.items()
        }
        return Verdict(
            scores=scores, notes={judge.name: rewards.notes[at]} if rewards.notes else {}
        )


@record
class _Judge:
    """A reward that is loaded, and the rows of the prompts that it accepts."""

    name: str
    reward: Reward
    score: Scorer
    kept: Sequence[int]

    @property
    def prefix(self) -> str:
        """Of the keys of its metrics: `eval/proxy` or `eval/gold`."""
        return "/".join(self.name.split("/")[:2])

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> _Said:
        rows = list(self.kept)
        rewards = self.score(images[rows], [prompts[row] for row in rows])
        return _Said(judge=self, rewards=rewards)


def _verdict(said: Sequence[_Said], row: int) -> Verdict:
    """Of all judges."""
    parts = [judge.of(row) for judge in said]
    scores = {key: value for part in parts for key, value in part.scores.items()}
    return Verdict(
        scores=scores, notes={name: lines for part in parts for name, lines in part.notes.items()}
    )


def _distance(model: Model, microbatch: int) -> Callable[[Trajectory], Metrics]:
    """`eval/kl`: mean((v - v_ref)^2) along the policy's own paths, one step of each, all steps alike."""
    reference = model.reference()

    @torch.no_grad()
    def distance(trajectory: Trajectory) -> Metrics:
        sample = torch.arange(len(trajectory.x), device=trajectory.x.device)
        step = trajectory.batch.sample % len(trajectory.schedule)
        whole = Rows(sample=sample, step=step, advantage=0.0 * sample)
        found = []
        for rows in whole.split(microbatch):
            here, there = (
                replay_steps(policy, trajectory, rows).mean for policy in (model.policy, reference)
            )
            square = (here - there).flatten(1).square().mean(1)
            found.append(square / trajectory.schedule.v_gain[rows.step].square())
        return {"eval/kl": mean(torch.cat(found))}

    return distance


def _accepted(reward: Reward, prompts: Sequence[Prompt]) -> list[int]:
    """Which prompts a reward can score."""
    return [i for i, prompt in enumerate(prompts) if reward.accepts(prompt)]
