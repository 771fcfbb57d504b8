"""The table of `bench.py peers`: this program against the common loop of the field.

The loop is that of flow_grpo's `train_sd3.py` and of the code bases that follow it: draw and store
latents and log-probabilities, score, normalise, then go through the samples step by step. It has no
framework, no metrics and no diagnostics. It is given the same model, prompts, noise and rewards.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from rich.progress import track
from rich.table import Table
from torch import Tensor

from grpo_guard import rng
from grpo_guard.command.benches.compiling import count_cpu_seconds
from grpo_guard.command.benches.iterations import describe_ratios, prepare_sessions
from grpo_guard.data import shuffled_places
from grpo_guard.schema import record
from grpo_guard.session import Session
from grpo_guard.train import iterate
from grpo_guard.types import Batch, Condition

SETTINGS = ["data.prompts=12", "data.repeats=16", "steps_per_sample=null", "microbatch=48"]
"""Overrides that both loops can follow: every trained step of every sample is replayed."""
VARIANTS = {"eager": [], "compiled": ["backbone.compile=true", "microbatch=32"]}
"""Overrides of this program only. What is compiled is faster in fewer rows."""


class PlainLoop:
    """The common loop on the model of a session, with an optimizer of its own."""

    def __init__(self, session: Session) -> None:
        self.session = session
        model: Any = session.model
        self.transformer = model.pipe.transformer
        self.parameters = [p for p in self.transformer.parameters() if p.requires_grad]
        self.optimizer = session.exp.optim(self.parameters)
        self.sigmas = session.model.times(session.exp.steps).tolist()
        low, high = session.limits()
        self.bounds = math.exp(low[0]), math.exp(high[0])

    def iterate(self, iteration: int) -> Float[Tensor, " B"]:
        """Draw, score and update; returns the rewards."""
        session = self.session
        exp = session.exp
        batch = session.local_batch(iteration)
        condition = session.model.encode([prompt.text for prompt in batch.prompts])
        condition = condition[batch.group]
        with torch.no_grad():
            x, log_probs = self.sample(iteration, batch.sample, condition)
            images = session.model.decode(x[:, -1])
            rewards = session.score(images, batch.prompts_by_sample()).total
        advantages = normalize(rewards, batch)
        places = shuffled_places(batch.total, exp.seed, iteration)[batch.sample]
        for number in range(exp.updates):
            own = (places % exp.updates == number).nonzero().flatten()
            self.update(own, x, log_probs, advantages, condition)
        return rewards

    def sample(
        self, iteration: int, samples: Int[Tensor, " B"], condition: Condition
    ) -> tuple[Float[Tensor, "B T1 ..."], Float[Tensor, "B T"]]:
        """Return the latents of all times, and the log-probability of every step but the last."""
        shape = self.session.model.shape
        address = self.session.exp.seed, iteration
        paths, chances = [], []
        for rows in torch.arange(len(samples)).split(self.session.exp.batch_sizes.microbatch):
            own = samples[rows]
            x = rng.noise(address, own, torch.full_like(own, rng.START), shape)
            path, log_probs = [x], []
            for i in range(len(self.sigmas) - 1):
                mean, std = self.step(i, x, condition[rows])
                if i < len(self.sigmas) - 2:
                    x = mean + std * rng.noise(address, own, torch.full_like(own, i), shape)
                    log_probs.append(log_probability(x, mean, std))
                else:
                    x = mean
                path.append(x)
            paths.append(torch.stack(path, dim=1))
            chances.append(torch.stack(log_probs, dim=1))
        return torch.cat(paths), torch.cat(chances)

    def step(
        self, i: int, x: Float[Tensor, "R ..."], condition: Condition
    ) -> tuple[Float[Tensor, "R ..."], float]:
        """Return mean and standard deviation of step i; the last one has no noise."""
        sigma, sigma_next = self.sigmas[i], self.sigmas[i + 1]
        dt = sigma_next - sigma
        t = torch.full((len(x),), 1000 * sigma)
        v = self.transformer(x, condition.tokens, condition.pooled, t, return_dict=False)[0]
        if sigma_next == 0:
            return x + v * dt, 0.0
        divisor = 1 - (self.sigmas[1] if sigma == 1 else sigma)
        level = math.sqrt(sigma / divisor) * self.session.exp.sde.level
        drift = level**2 / (2 * sigma)
        mean = x * (1 + drift * dt) + v * (1 + drift * (1 - sigma)) * dt
        return mean, level * math.sqrt(-dt)

    def update(
        self,
        own: Int[Tensor, " b"],
        x: Float[Tensor, "B T1 ..."],
        old: Float[Tensor, "B T"],
        advantages: Float[Tensor, " B"],
        condition: Condition,
    ) -> None:
        """Take one optimizer step on all steps of some samples."""
        parts = own.split(self.session.exp.batch_sizes.microbatch)
        steps = old.shape[1]
        for rows in parts:
            for i in range(steps):
                mean, std = self.step(i, x[rows, i], condition[rows])
                ratio = (log_probability(x[rows, i + 1], mean, std) - old[rows, i]).exp()
                gain = advantages[rows]
                clipped = ratio.clamp(*self.bounds) * gain
                loss = -torch.minimum(ratio * gain, clipped).sum() / (len(own) * steps)
                loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.session.exp.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def log_probability(
    x_next: Float[Tensor, "R ..."], mean: Float[Tensor, "R ..."], std: float
) -> Float[Tensor, " R"]:
    """Return the mean log-probability of the numbers of each latent."""
    squares = (x_next - mean).square() / (2 * std**2)
    return (-squares - math.log(std) - math.log(math.sqrt(2 * math.pi))).flatten(1).mean(1)


def normalize(rewards: Float[Tensor, " B"], batch: Batch) -> Float[Tensor, " B"]:
    """Return (reward - mean) / (standard deviation + 1e-4) within each group."""
    advantages = torch.zeros_like(rewards)
    for group in batch.group.unique():
        rows = batch.group == group
        own = rewards[rows]
        advantages[rows] = (own - own.mean()) / (own.std(correction=0) + 1e-4)
    return advantages.clamp(-5, 5)


def prepare_loops(
    overrides: Sequence[str], variants: Mapping[str, Sequence[str]] = VARIANTS
) -> tuple[PlainLoop, dict[str, Session]]:
    """Load the same experiment, with Flow-GRPO's objective, for the plain loop and this program."""

    def load(own: Sequence[str]) -> Session:
        return prepare_sessions(["vanilla"], [*SETTINGS, *own, *overrides])["vanilla"]

    return PlainLoop(load([])), {name: load(own) for name, own in variants.items()}


@record
class Paces:
    """CPU seconds of iterations, round by round."""

    common: tuple[float, ...]
    """Seconds of the common loop."""
    own: Mapping[str, tuple[float, ...]]
    """Seconds of each variant of this program."""
    differences: Mapping[str, float]
    """Distance of each variant's weights from the common loop's after one iteration, divided by how
    far they moved."""


def compare_loops(overrides: Sequence[str], rounds: int) -> Paces:
    """Count CPU seconds of iterations that alternate, after one of each that does not count."""
    plain, sessions = prepare_loops(overrides)
    before = flatten(plain.parameters)
    plain.iterate(0)
    differences = {}
    for name, session in sessions.items():
        sessions[name], _ = iterate(session, 0)
        moved = flatten(sessions[name].learner.parameters)
        differences[name] = distance(before, moved, flatten(plain.parameters))
    common = list[float]()
    own: dict[str, list[float]] = {name: [] for name in sessions}
    for iteration in track(range(1, rounds + 1), "timing"):
        common.append(count_cpu_seconds(partial(plain.iterate, iteration))[1])
        for name, session in sessions.items():
            (sessions[name], _), seconds = count_cpu_seconds(partial(iterate, session, iteration))
            own[name].append(seconds)
    return Paces(
        common=tuple(common),
        own={name: tuple(seconds) for name, seconds in own.items()},
        differences=differences,
    )


def make_table(paces: Paces) -> Table:
    """Show the pace of each variant over the common loop's, round by round."""
    table = Table("loop", "iteration, CPU s", "pace over the common loop", "difference of weights")
    table.add_row("the common loop", f"{statistics.median(paces.common):.2f}", "1", "")
    for name, seconds in paces.own.items():
        ratios = [c / o for o, c in zip(seconds, paces.common, strict=True)]
        pace = describe_ratios(ratios)
        median = f"{statistics.median(seconds):.2f}"
        table.add_row(f"this program, {name}", median, pace, f"{paces.differences[name]:.1e}")
    return table


def flatten(parameters: Sequence[Tensor]) -> Float[Tensor, " P"]:
    """Return a copy of all weights as one vector."""
    return torch.cat([p.detach().flatten() for p in parameters])


def distance(
    before: Float[Tensor, " P"], one: Float[Tensor, " P"], other: Float[Tensor, " P"]
) -> float:
    """Return how far two vectors are apart, over how far the first has come."""
    return float((one - other).norm() / (one - before).norm())
