"""Evaluation on held-out prompts with fixed noise per prompt."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.backbone import Model
from grpo_guard.data import Split, pick_prompts
from grpo_guard.eval import NOTHING, Evaluate, Evaluation, EvaluationCost, Proxy
from grpo_guard.eval._judge import (
    Judge,
    Judgement,
    accepted_rows,
    join_prompts,
    merge_scores,
    scores_by_prompt,
)
from grpo_guard.eval._prompt_set import PromptSet
from grpo_guard.eval.alarm import Alarm
from grpo_guard.keys import name_key
from grpo_guard.metrics import Clock, Metrics, merge
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.reward import Reward, Scorer, load_scorer
from grpo_guard.schema import (
    Advice,
    AtMost,
    Name,
    NonNegativeInt,
    PositiveInt,
    component,
    require,
)
from grpo_guard.sde import schedule
from grpo_guard.sde.ode import Ode
from grpo_guard.types import Batch, Pictures, Prompt, Velocity, map_tensors

HELD_OUT_NOISE = -1
"""The iteration in the address of the held-out prompts' noise, which no rollout has."""
TRAIN_NOISE = -2
"""The iteration in the address of the training prompts' noise, which no rollout has."""

PICTURE_BYTES = 49_152
"""Size of the smallest picture, 64 px in float32: a lower bound for any model."""

_log = logging.getLogger(__name__)


@component
class HeldOut:
    """Draw one ODE sample of each of some held-out prompts, and score it by the proxy and golds.

    Prompts and noise depend on `seed` alone, so all runs are compared on the same pictures.
    """

    prompts: Annotated[PositiveInt, AtMost(1_000_000, unit_bytes=PICTURE_BYTES)]
    """Held-out prompts of an evaluation; positive, a multiple of the number of processes."""
    steps: Annotated[PositiveInt, AtMost(10_000)]
    """ODE steps of a sample; positive."""
    resolution: Annotated[
        PositiveInt | None, AtMost(16_384), Advice("give null for that of training")
    ] = None
    """Height and width of the evaluated images in pixels; null: those of training."""
    every: PositiveInt
    """Iterations between two evaluations; there is also one at the start and one at the end."""
    pictures: PositiveInt
    """How many of the pictures are kept and shown; positive, at most `prompts`."""
    microbatch: PositiveInt
    """Samples that are drawn at a time; positive."""
    seed: int
    """Seed of the prompts and of their noise, apart from the run's own seed."""
    kl: bool
    """True: also measure the distance from the model as it was loaded. It costs a frozen copy of
    the policy unless adapters are trained."""
    keep_gold: bool
    """True: gold rewards stay in memory. False: they are loaded for each evaluation, one after
    the other, and hold no memory between evaluations."""
    gold: Mapping[Name, Reward]
    """Rewards by name that are never trained on; each scores the prompts that it accepts."""
    train_prompts: Annotated[
        NonNegativeInt, AtMost(1_000_000, unit_bytes=PICTURE_BYTES), Advice("give 0 for none")
    ]
    """Training prompts that are evaluated as well, as eval/train/...; a proxy that rises on them
    alone is overfitted. 0: none; else a multiple of the number of processes."""
    alarm: Alarm
    """When a run counts as over-optimising; logged as eval/over_optimising."""
    stop_on_over_optimisation: bool
    """True: a run ends at the evaluation that raises the alarm; `checkpoint.best` must name a
    metric, so that the best checkpoint is kept. False: the alarm is only reported."""

    def __post_init__(self) -> None:
        require(
            self.pictures <= self.prompts,
            f"pictures={self.pictures} is more than prompts={self.prompts}; give less",
        )
        require(
            not self.stop_on_over_optimisation or bool(self.alarm.golds),
            "stop_on_over_optimisation=true, but no gold is watched; give eval.alarm.golds, such as"
            " [exact]",
        )

    @property
    def cost(self) -> EvaluationCost:
        """What an evaluation draws and holds; golds that are not kept visit one after another."""
        golds = [reward.weight_bytes for reward in self.gold.values()]
        return EvaluationCost(
            prompts=max(self.prompts, self.train_prompts),
            encoded_prompts=self.prompts + self.train_prompts,
            steps=self.steps,
            resolution=self.resolution,
            microbatch=self.microbatch,
            uses_reference=self.kl,
            resident_bytes=sum(golds) if self.keep_gold else 0,
            visiting_bytes=0 if self.keep_gold else max(golds, default=0),
        )

    def load(
        self, model: Model, split: Split, proxy: Proxy, ranks: Ranks, iterations: int
    ) -> Evaluate:
        """Encode the prompts once and load the gold rewards."""
        if ranks.is_first:
            self._warn_of_short_run(iterations)
        model = self._resize(model)
        counts = {"": self.prompts, "train/": self.train_prompts}
        sources = {"": split.heldout, "train/": split.train}
        noises = {"": HELD_OUT_NOISE, "train/": TRAIN_NOISE}
        golds = dict[str, Scorer]()
        sets = dict[str, PromptSet]()
        for role, count in counts.items():
            address = (self.seed, "eval") if not role else (self.seed, "eval", role)
            prompts = pick_prompts(sources[role], split.in_turn, range(count), *address)
            if prompts:
                batch = self._local_batch(role, prompts, ranks)
                judges = self._load_judges(role, batch, proxy, golds, ranks.device)
                sets[role] = self._prepare(model, batch, judges, noises[role], ranks.device)
        reference = model.reference() if self.kl else None

        def evaluate(
            iteration: int, averaged: Callable[[], AbstractContextManager[None]] = nullcontext
        ) -> Evaluation:
            if iteration % self.every != 0 and iteration != iterations:
                return NOTHING
            with averaged():
                return self._evaluate(sets, reference, ranks)

        return evaluate

    def _warn_of_short_run(self, iterations: int) -> None:
        """Say in one line that a run is too short to end early, if it shall."""
        before_the_end = math.ceil(iterations / self.every)
        if self.stop_on_over_optimisation and before_the_end < self.alarm.window:
            _log.warning(
                "eval.stop_on_over_optimisation=true cannot end this run: it evaluates %d times"
                " before its end, fewer than eval.alarm.window=%d; lower eval.every or the window",
                before_the_end,
                self.alarm.window,
            )

    def _resize(self, model: Model) -> Model:
        """Return the model at the resolution of the evaluation."""
        if self.resolution is None:
            return model
        with name_key("eval."):
            return model.at(self.resolution)

    def _local_batch(self, role: str, prompts: tuple[Prompt, ...], ranks: Ranks) -> Batch:
        """Return this process's part of the prompts."""
        count = len(prompts)
        key = "eval.train_prompts" if role else "eval.prompts"
        nearest = max(1, round(count / ranks.processes)) * ranks.processes
        require(
            count % ranks.processes == 0,
            f"{key}={count} do not divide among {ranks.processes} processes;"
            f" nearest that does: {nearest}",
        )
        own = torch.arange(count, device=ranks.device).chunk(ranks.processes)[ranks.rank]
        return Batch(prompts=prompts, group=own, sample=own, total=count)

    def _load_judges(
        self,
        role: str,
        batch: Batch,
        proxy: Proxy,
        golds: dict[str, Scorer],
        device: torch.device,
    ) -> tuple[Judge, ...]:
        """Return the proxy and the golds that accept any of the prompts; load each gold once."""
        prompts = batch.prompts_by_sample()
        everything = range(len(prompts))
        judges = [
            Judge(role=role, gold=None, reward=proxy.reward, score=proxy.score, accepted=everything)
        ]
        for name, gold in self.gold.items():
            accepted = accepted_rows(f"eval.gold.{name}", gold, prompts)
            if not accepted:
                continue
            if name not in golds:
                golds[name] = self._load_gold(f"eval.gold.{name}", gold, device)
            judges.append(
                Judge(role=role, gold=name, reward=gold, score=golds[name], accepted=accepted)
            )
        return tuple(judges)

    def _load_gold(self, key: str, gold: Reward, device: torch.device) -> Scorer:
        """Load a gold now in any case, so that missing weights are refused before training."""
        score = load_scorer(key, gold, device)
        if self.keep_gold:
            return score
        return lambda images, prompts: load_scorer(key, gold, device)(images, prompts)

    def _prepare(
        self,
        model: Model,
        batch: Batch,
        judges: tuple[Judge, ...],
        noise: int,
        device: torch.device,
    ) -> PromptSet:
        steps = schedule(Ode(), model.times(self.steps))
        return PromptSet(
            model=model,
            policy=model.policy,
            batch=batch,
            condition=model.encode([prompt.text for prompt in batch.prompts]),
            schedule=map_tensors(steps, lambda x: x.to(device)),
            address=(self.seed, noise),
            microbatch=self.microbatch,
            judges=judges,
        )

    def _evaluate(
        self, sets: Mapping[str, PromptSet], reference: Velocity | None, ranks: Ranks
    ) -> Evaluation:
        """Draw all sets and judge them; pictures are those of the held-out prompts."""
        clock = Clock()
        metrics: list[Metrics] = []
        with clock("eval"):
            held_out = sets[""]
            trajectory = held_out.draw()
            images = held_out.model.decode(trajectory.sample)
            judgements = held_out.judge(images)
            metrics += [judgement.metrics for judgement in judgements]
            by_prompt = gather_by_prompt(judgements, held_out.batch, ranks)
            if reference is not None:
                metrics.append(held_out.measure_distance(reference, trajectory))
            if train := sets.get("train/"):
                on_training = train.judge(train.model.decode(train.draw().sample))
                metrics += [judgement.metrics for judgement in on_training]
                by_prompt |= gather_by_prompt(on_training, train.batch, ranks)
            pictures = self._gather_pictures(held_out.batch, images, judgements, by_prompt, ranks)
        return Evaluation(metrics=merge([*metrics, clock.times()]), pictures=pictures)

    def _gather_pictures(
        self,
        batch: Batch,
        images: Float[Tensor, "B 3 H W"],
        judgements: Sequence[Judgement],
        by_prompt: Mapping[str, Sequence[float]],
        ranks: Ranks,
    ) -> Pictures:
        """Return the first pictures of all processes, with what the judges say of each."""
        kept = (batch.sample < self.pictures).nonzero().flatten()
        own_scores = [merge_scores(judgements, row) for row in kept.tolist()]
        return Pictures(
            images=ranks.all_gather_rows(images[kept], "evaluation"),
            captions=tuple(prompt.text for prompt in batch.prompts[: self.pictures]),
            scores=tuple(chain.from_iterable(ranks.all_gather(own_scores, "evaluation"))),
            by_prompt=by_prompt,
        )


def gather_by_prompt(
    judgements: Sequence[Judgement], batch: Batch, ranks: Ranks
) -> dict[str, list[float]]:
    """Return the scores of the prompts of all processes, in their order, by metric key."""
    count = len(batch.sample)
    parts = ranks.all_gather(scores_by_prompt(judgements, count), "evaluation")
    return join_prompts(parts, count)
