"""A fixed set of prompts with fixed noise, drawn and judged whenever an evaluation is due."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.backbone import Model
from grpo_guard.eval._judge import Judge, Judgement, require_own_parts
from grpo_guard.final_steps.euler import Euler
from grpo_guard.metrics import Metrics, mean
from grpo_guard.rollout import replay_steps, rollout
from grpo_guard.schema import record
from grpo_guard.types import Batch, Condition, Rows, Schedule, Trajectory, Velocity


@record
class PromptSet:
    """This process's part of a set of prompts, with everything that drawing them needs."""

    model: Model
    """The backbone, at the resolution of the evaluation."""
    policy: Velocity
    """Its policy, which is trained between evaluations."""
    batch: Batch
    """The prompts."""
    condition: Condition
    """The prompts of all processes, encoded."""
    schedule: Schedule
    """The ODE steps."""
    address: tuple[int, int]
    """(seed, iteration) of the noise; no rollout has this iteration."""
    microbatch: int
    """Samples that are drawn at a time."""
    judges: tuple[Judge, ...]
    """The proxy and the golds."""

    def draw(self) -> Trajectory:
        """Draw the same prompts from the same noise whenever it is called."""
        return rollout(
            self.policy,
            self.schedule,
            self.batch,
            self.condition,
            self.model.shape,
            address=self.address,
            microbatch=self.microbatch,
            final_steps=Euler(),
        )

    def judge(self, images: Float[Tensor, "B 3 H W"]) -> list[Judgement]:
        """Let every judge score the images; raises ConfigError if two golds give one name."""
        prompts = self.batch.prompts_by_sample()
        judgements = [judge(images, prompts) for judge in self.judges]
        require_own_parts(judgements)
        return judgements

    @torch.no_grad()
    def measure_distance(self, reference: Velocity, trajectory: Trajectory) -> Metrics:
        """Measure `eval/kl`: mean((v - v_ref)^2) along the policy's own paths.

        Each path contributes one of its steps, so that all steps count alike.
        """
        samples = torch.arange(len(trajectory.x), device=trajectory.x.device)
        steps = trajectory.batch.sample % len(trajectory.schedule)
        squares: list[Tensor] = []
        rows = Rows(sample=samples, step=steps, advantage=0.0 * samples)
        for part in rows.split(self.microbatch):
            mean_now = replay_steps(self.policy, trajectory, part).mean
            mean_reference = replay_steps(reference, trajectory, part).mean
            square = (mean_now - mean_reference).flatten(1).square().mean(1)
            # Means differ by v_gain times the difference of the velocities.
            squares.append(square / trajectory.schedule.v_gain[part.step].square())
        return {"eval/kl": mean(torch.cat(squares))}
