"""Evaluation on held-out prompts with fixed noise per prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from grpo_guard.backbone import Model
from grpo_guard.data import Split, draw
from grpo_guard.eval import NOTHING, Evaluate, Evaluation
from grpo_guard.metrics import Clock, Metrics, mean, merge
from grpo_guard.reward import Reward, Scorer
from grpo_guard.rollout import rollout
from grpo_guard.sde import schedule
from grpo_guard.sde.ode import Ode
from grpo_guard.types import Batch, Prompt, Rewards, component, each, require


@component
class HeldOut:
    """`prompts` held-out prompts, one ODE sample of `steps` steps each, every `every` iterations and at both ends.

    Prompts and noise depend on `seed` alone, so that runs are compared on the same pictures; the first `pictures` of
    them are kept. `gold` names rewards that nothing is trained on; each scores the prompts it accepts.
    """

    prompts: int
    steps: int
    every: int
    pictures: int
    microbatch: int
    seed: int
    gold: Mapping[str, Reward]

    def __post_init__(self) -> None:
        for key in ("prompts", "steps", "every", "pictures", "microbatch"):
            require(getattr(self, key) > 0, f"{key}={getattr(self, key)} is not positive")
        require(self.pictures <= self.prompts, f"pictures={self.pictures} is more than prompts={self.prompts}")

    def load(self, model: Model, split: Split, proxy: Scorer, device: torch.device, iterations: int) -> Evaluate:
        """Encode the prompts once and load the gold rewards."""
        prompts = draw(split.heldout, range(self.prompts), self.seed, "eval")
        accepted = {name: _accepted(reward, prompts) for name, reward in self.gold.items()}
        golds = [(self.gold[name].load(device), kept) for name, kept in accepted.items() if kept]
        paint = self._painter(model, prompts, device)

        def evaluate(iteration: int) -> Evaluation:
            if iteration % self.every and iteration != iterations:
                return NOTHING
            clock = Clock()
            with clock("eval"):
                images = paint()
                found = [_metrics("eval/proxy", proxy(images, prompts))]
                for score, kept in golds:
                    found.append(_metrics("eval/gold", score(images[kept], [prompts[i] for i in kept])))
            return Evaluation(
                metrics=merge([*found, clock.times()]),
                images=images[: self.pictures],
                captions=tuple(p.text for p in prompts[: self.pictures]),
            )

        return evaluate

    def _painter(self, model: Model, prompts: tuple[Prompt, ...], device: torch.device) -> Callable[[], Tensor]:
        """Draws the same prompts from the same noise whenever it is called."""
        index = torch.arange(len(prompts), device=device)
        batch, condition = Batch(prompts=prompts, group=index, sample=index), model.encode([p.text for p in prompts])
        steps = each(schedule(Ode(), model.times(self.steps)), lambda x: x.to(device))

        def paint() -> Tensor:
            trajectory = rollout(
                model.policy, steps, batch, condition, model.shape, address=(self.seed, -1), microbatch=self.microbatch
            )
            return model.decode(trajectory.sample)

        return paint


def _accepted(reward: Reward, prompts: Sequence[Prompt]) -> list[int]:
    """Which prompts a reward can score."""
    return [i for i, prompt in enumerate(prompts) if reward.accepts(prompt)]


def _metrics(prefix: str, rewards: Rewards) -> Metrics:
    return {f"{prefix}/{name}": mean(values) for name, values in rewards.parts.items()}
