"""Evaluation on held-out prompts with fixed noise per prompt."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor

from grpo_guard.backbone import Model
from grpo_guard.data import Split, pick_prompts
from grpo_guard.eval import NOTHING, Evaluate, Evaluation, EvaluationCost, Proxy
from grpo_guard.eval._judge import Judge, accepted_rows, merge_scores
from grpo_guard.final_steps.euler import Euler
from grpo_guard.metrics import Clock, Metrics, mean, merge
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.reward import Reward, Scorer
from grpo_guard.rollout import replay_steps, rollout
from grpo_guard.schema import component, record, require
from grpo_guard.sde import schedule
from grpo_guard.sde.ode import Ode
from grpo_guard.types import (
    Batch,
    Condition,
    Prompt,
    Rows,
    Schedule,
    Trajectory,
    Velocity,
    map_tensors,
)

BEFORE_TRAINING = -1
"""The iteration in the address of an evaluation's noise, which no rollout has."""


@component
class HeldOut:
    """Draw one ODE sample of each of some held-out prompts, and score it by the proxy and golds.

    Prompts and noise depend on `seed` alone, so all runs are compared on the same pictures.
    """

    prompts: int
    """Held-out prompts of an evaluation; positive, a multiple of the number of processes."""
    steps: int
    """ODE steps of a sample; positive."""
    every: int
    """Iterations between two evaluations; there is also one at the start and one at the end."""
    pictures: int
    """How many of the pictures are kept and shown; positive, at most `prompts`."""
    microbatch: int
    """Samples that are drawn at a time; positive."""
    seed: int
    """Seed of the prompts and of their noise, apart from the run's own seed."""
    kl: bool
    """True: also measure the distance from the model as it was loaded. It costs a frozen copy of
    the policy unless adapters are trained."""
    keep_gold: bool
    """True: gold rewards stay in memory. False: they are loaded for each evaluation, one after
    the other, and hold no memory between evaluations."""
    gold: Mapping[str, Reward]
    """Rewards by name that are never trained on; each scores the prompts that it accepts."""

    def __post_init__(self) -> None:
        for key in ("prompts", "steps", "every", "pictures", "microbatch"):
            require(getattr(self, key) > 0, f"{key}={getattr(self, key)} is not positive")
        require(
            self.pictures <= self.prompts,
            f"pictures={self.pictures} is more than prompts={self.prompts}",
        )

    @property
    def cost(self) -> EvaluationCost:
        """What an evaluation draws and holds; golds that are not kept visit one after another."""
        golds = [reward.weight_bytes for reward in self.gold.values()]
        return EvaluationCost(
            prompts=self.prompts,
            steps=self.steps,
            microbatch=self.microbatch,
            uses_reference=self.kl,
            resident_bytes=sum(golds) if self.keep_gold else 0,
            visiting_bytes=0 if self.keep_gold else max(golds, default=0),
        )

    def load(
        self, model: Model, split: Split, proxy: Proxy, ranks: Ranks, iterations: int
    ) -> Evaluate:
        """Encode the prompts once and load the gold rewards."""
        prompts = pick_prompts(split.heldout, split.in_turn, range(self.prompts), self.seed, "eval")
        batch = self._local_batch(prompts, ranks)
        loaded = _LoadedEvaluation(
            recipe=self,
            model=model,
            ranks=ranks,
            batch=batch,
            condition=model.encode([prompt.text for prompt in prompts]),
            schedule=map_tensors(
                schedule(Ode(), model.times(self.steps)), lambda x: x.to(ranks.device)
            ),
            judges=self._judges(batch, proxy, ranks),
            reference=model.reference() if self.kl else None,
        )

        def evaluate(iteration: int) -> Evaluation:
            due = iteration % self.every == 0 or iteration == iterations
            return loaded.evaluate() if due else NOTHING

        return evaluate

    def _local_batch(self, prompts: tuple[Prompt, ...], ranks: Ranks) -> Batch:
        """Return this process's part of the prompts."""
        nearest = max(1, round(self.prompts / ranks.processes)) * ranks.processes
        require(
            self.prompts % ranks.processes == 0,
            f"eval.prompts={self.prompts} do not divide among {ranks.processes} processes;"
            f" nearest that does: {nearest}",
        )
        own = torch.arange(len(prompts), device=ranks.device).chunk(ranks.processes)[ranks.rank]
        return Batch(prompts=prompts, group=own, sample=own, total=len(prompts))

    def _judges(self, batch: Batch, proxy: Proxy, ranks: Ranks) -> list[Judge]:
        """Load the golds that accept any prompt, beside the proxy, which accepts all of them."""
        prompts = batch.prompts_by_sample()
        judges = [
            Judge(
                name="eval/proxy",
                reward=proxy.reward,
                score=proxy.score,
                accepted=range(len(prompts)),
            )
        ]
        for name, gold in self.gold.items():
            accepted = accepted_rows(gold, prompts)
            if accepted:
                score = self._load_gold(gold, ranks.device)
                judges.append(
                    Judge(name=f"eval/gold/{name}", reward=gold, score=score, accepted=accepted)
                )
        return judges

    def _load_gold(self, gold: Reward, device: torch.device) -> Scorer:
        """Load a gold now in any case, so that missing weights are refused before training."""
        score = gold.load(device)
        return (
            score if self.keep_gold else lambda images, prompts: gold.load(device)(images, prompts)
        )


@record
class _LoadedEvaluation:
    """An evaluation with everything loaded."""

    recipe: HeldOut
    """Its settings."""
    model: Model
    """The backbone, whose policy is trained meanwhile."""
    ranks: Ranks
    """The processes of the run."""
    batch: Batch
    """This process's prompts."""
    condition: Condition
    """All prompts, encoded."""
    schedule: Schedule
    """The ODE steps."""
    judges: list[Judge]
    """The proxy and the golds."""
    reference: Velocity | None
    """The policy as it was loaded; None: the distance from it is not measured."""

    def evaluate(self) -> Evaluation:
        """Draw the samples and score them."""
        clock = Clock()
        with clock("eval"):
            trajectory = self._draw()
            images = self.model.decode(trajectory.sample)
            prompts = self.batch.prompts_by_sample()
            judgements = [judge(images, prompts) for judge in self.judges]
            kept = (self.batch.sample < self.recipe.pictures).nonzero().flatten()
            pictures = self.ranks.all_gather_rows(images[kept], "evaluation")
            own_scores = [merge_scores(judgements, row) for row in kept.tolist()]
            scores = self.ranks.all_gather(own_scores, "evaluation")
            metrics = [*(judgement.metrics for judgement in judgements), self._distance(trajectory)]
        return Evaluation(
            metrics=merge([*metrics, clock.times()]),
            images=pictures,
            captions=tuple(p.text for p in self.batch.prompts[: self.recipe.pictures]),
            image_scores=tuple(chain.from_iterable(scores)),
        )

    def _draw(self) -> Trajectory:
        """Draw the same prompts from the same noise whenever it is called."""
        return rollout(
            self.model.policy,
            self.schedule,
            self.batch,
            self.condition,
            self.model.shape,
            address=(self.recipe.seed, BEFORE_TRAINING),
            microbatch=self.recipe.microbatch,
            final_steps=Euler(),
        )

    @torch.no_grad()
    def _distance(self, trajectory: Trajectory) -> Metrics:
        """Measure `eval/kl`: mean((v - v_ref)^2) along the policy's own paths.

        Each path contributes one of its steps, so that all steps count alike.
        """
        if self.reference is None:
            return {}
        samples = torch.arange(len(trajectory.x), device=trajectory.x.device)
        steps = trajectory.batch.sample % len(trajectory.schedule)
        squares: list[Tensor] = []
        rows = Rows(sample=samples, step=steps, advantage=0.0 * samples)
        for part in rows.split(self.recipe.microbatch):
            mean_now = replay_steps(self.model.policy, trajectory, part).mean
            mean_reference = replay_steps(self.reference, trajectory, part).mean
            square = (mean_now - mean_reference).flatten(1).square().mean(1)
            # Means differ by v_gain times the difference of the velocities.
            squares.append(square / trajectory.schedule.v_gain[part.step].square())
        return {"eval/kl": mean(torch.cat(squares))}
