"""An experiment so small that a run takes a second.

The policy is a linear map, and a picture is the sigmoid of a latent.
"""

import copy
import functools
import json
from pathlib import Path

import torch
from torch import nn

from grpo_guard import rng
from grpo_guard.advantage.group import Group
from grpo_guard.clipping.clip import Clip
from grpo_guard.clipping.fixed import Fixed
from grpo_guard.clipping.target_fraction import TargetFraction
from grpo_guard.clipping.weight import inverse_dt, uniform
from grpo_guard.data import Split, plan
from grpo_guard.ema.none import NoEma
from grpo_guard.eval.alarm import Alarm
from grpo_guard.eval.heldout import HeldOut
from grpo_guard.experiment import Experiment
from grpo_guard.final_steps.euler import Euler
from grpo_guard.kl.none import NoKl
from grpo_guard.lifecycle.checkpoint import Checkpoints
from grpo_guard.logger.folder import Folder
from grpo_guard.logger.tee import Tee
from grpo_guard.old_policy.rollout import RolloutOldPolicy
from grpo_guard.ratio import log_ratio_norm, log_ratio_raw
from grpo_guard.reward import rewards_from_parts
from grpo_guard.reward.clip import Towers
from grpo_guard.reward.diversity import Diversity
from grpo_guard.reward.statistics import ImageStatistics
from grpo_guard.rollout import rollout
from grpo_guard.schema import component
from grpo_guard.sde.flow import Flow
from grpo_guard.sde.window import Window
from grpo_guard.strategy.single import Single
from grpo_guard.types import Condition, Prompt
from grpo_guard.watch.pictures import Pictures

SHAPE = (3, 2, 2)
D = 12
MACHINE = ("time/", "throughput/", "memory/")
"""Beginnings of the keys of metrics that depend on the machine."""


class Policy(nn.Module):
    """A velocity that is linear in latent, time and prompt."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(D + 1 + 4, D)

    def forward(self, x, t, condition):
        return self.map(torch.cat([x.flatten(1), t[:, None], condition.pooled], dim=1)).view_as(x)


class Model:
    """A loaded backbone whose policy is the linear map."""

    shape = SHAPE
    dtype = torch.float32

    def __init__(self, device="cpu", policy=Policy):
        self.device = device
        self.policy = policy().to(device)

    def times(self, steps):
        return torch.linspace(1, 0, steps + 1)

    def encode(self, texts):
        pooled = rng.normal((4,), [("prompt", text) for text in texts], self.device)
        return Condition(tokens=pooled.new_zeros(len(texts), 1, 1), pooled=pooled)

    def decode(self, latents):
        return latents.sigmoid()

    def reference(self):
        return copy.deepcopy(self.policy)

    def unguided(self):
        return self.policy

    def save(self, folder, weights):
        torch.save(weights, folder / "policy.pt")

    def restore(self, folder):
        self.policy.load_state_dict(torch.load(folder / "policy.pt"))

    def at(self, resolution):
        return self

    def widen(self):
        """Compute in float32, as it always does."""


@component
class Backbone:
    """The backbone of the toy."""

    def load(self, device):
        return Model(device)


class Explodes(Model):
    """A model whose first velocity is NaN in some training forwards, numbered from 0."""

    def __init__(self, at):
        super().__init__()
        self.forwards = iter(range(1000))
        self.policy.register_forward_hook(
            lambda module, inputs, v: self.spoil(v, at) if v.requires_grad else None
        )

    def spoil(self, v, at):
        factor = torch.ones(len(v), 1, 1, 1)
        factor[0] = torch.nan if next(self.forwards) in at else 1.0
        return factor * v


@component
class Explosive(Backbone):
    """A backbone whose model is Explodes."""

    at: list[int]
    """Training forwards whose first velocity is NaN."""

    def load(self, device):
        return Explodes(self.at)


@component
class Data:
    """Six training prompts and two held-out ones."""

    prompts: int = 4
    """Prompt instances of an iteration."""
    repeats: int = 8
    """Samples of each prompt instance."""

    def load(self):
        texts = tuple(Prompt(text=letter) for letter in "abcdefgh")
        return Split(train=texts[:6], heldout=texts[6:])


@component
class Grey:
    """Reward pictures whose average brightness is near `target`."""

    target: float = 0.8
    """Average brightness that scores highest, in [0, 1]."""

    compares = False
    weight_bytes = 0

    def accepts(self, prompt):
        return True

    def load(self, device):
        return lambda images, prompts: rewards_from_parts(
            grey=-(images.mean((1, 2, 3)) - self.target).square()
        )


@component
class Indifferent(Grey):
    """Scores as Grey does, but all pictures of the first letters of the alphabet alike."""

    last: str = "d"
    """Last letter whose pictures are all alike."""

    def load(self, device):
        def score(images, prompts):
            alike = [prompt.text <= self.last for prompt in prompts]
            grey = Grey.load(self, device)(images, prompts).total
            return rewards_from_parts(
                grey=torch.where(torch.tensor(alike, device=grey.device), 0.5, grey)
            )

        return score


@component
class Fails:
    """Fails to score the first samples of every call."""

    share: float
    """Share of the samples that cannot be scored, in [0, 1]."""
    name: str = "grey"
    """Name of the score."""

    compares = False
    weight_bytes = 0

    def accepts(self, prompt):
        return True

    def load(self, device):
        def score(images, prompts):
            grey = images.mean((1, 2, 3))
            grey[: round(self.share * len(images))] = torch.nan
            return rewards_from_parts(**{self.name: grey})

        return score


def flat_towers(**_):
    """Return encoders that embed a picture as the list of its numbers."""

    def flatten(x):
        return x.flatten(1)

    return Towers(
        tokenize=flatten, text=flatten, preprocess=torch.clone, image=flatten, width=D, gain=1.0
    )


VANILLA = Clip(
    name="vanilla",
    ratio=log_ratio_raw,
    weight=uniform,
    adaptation=Fixed(),
    high=1e-4,
    low=1e-4,
)
GUARD = Clip(
    name="guard",
    ratio=log_ratio_norm,
    weight=inverse_dt,
    adaptation=Fixed(),
    high=2e-6,
    low=2e-6,
)


ADAPTIVE = Clip(
    name="adaptive",
    ratio=log_ratio_norm,
    weight=inverse_dt,
    adaptation=TargetFraction(fraction=0.3, per_step=True, memory=0.5),
    high=2e-6,
    low=2e-6,
)


def apply_objective(clipping, drift, rows, schedule):
    """Apply an objective with its limits as configured."""
    return clipping(drift, rows, schedule, clipping.limits(drift.dimensions, len(schedule)))


def experiment(folder=Path("unwritten"), **changes):
    """Return an experiment of three iterations: 32 samples of 5 steps, two updates of 64 rows."""
    parts = {
        "backbone": Backbone(),
        "data": Data(),
        "sde": Flow(level=0.7, window=Window()),
        "reward": Grey(),
        "watch": Pictures(
            statistics=ImageStatistics(period=2),
            diversity=Diversity(
                clip=functools.partial(flat_towers, model="flat"),
                microbatch=5,
                dtype="float32",
                name="diversity",
            ),
        ),
        "advantage": Group(std="group"),
        "clipping": GUARD,
        "kl": NoKl(),
        "old_policy": RolloutOldPolicy(),
        "final_steps": Euler(),
        "ema": NoEma(),
        "optim": functools.partial(torch.optim.Adam, lr=1e-2),
        "strategy": Single(device="cpu", threads=1),
        "logger": Tee(sinks={"folder": Folder(flush_every=2)}),
        "eval": HeldOut(
            prompts=2,
            steps=3,
            every=2,
            pictures=1,
            train_prompts=0,
            microbatch=2,
            seed=9,
            keep_gold=True,
            kl=True,
            gold={"grey": Grey(target=0.2)},
            alarm=Alarm(golds=[], window=4, confidence=0.999),
            stop_on_over_optimisation=False,
        ),
        "seed": 0,
        "iterations": 3,
        "steps": 5,
        "updates": 2,
        "microbatch": 32,
        "steps_per_sample": None,
        "max_grad_norm": 1.0,
        "max_failed": 0.1,
        "checkpoint": Checkpoints(every=1, keep=2, export_every=2, best=None, asynchronous=True),
        "max_skipped": 3,
        "asynchronous": False,
        "selftest": False,
        "resume": "auto",
        "output": str(folder),
    }
    return Experiment(**parts | changes)


def draw_trajectory(session, iteration=0, **changes):
    """Draw the samples of an iteration; `changes` replace arguments of `rollout`."""
    exp = session.exp
    model = session.model
    batch = plan(exp.data, session.split, exp.seed, iteration)
    arguments = {
        "batch": batch,
        "microbatch": exp.microbatch,
        "final_steps": exp.final_steps,
    } | changes
    condition = model.encode([prompt.text for prompt in batch.prompts])
    return rollout(
        model.policy,
        session.schedule(iteration),
        condition=condition,
        shape=SHAPE,
        address=(exp.seed, iteration),
        **arguments,
    )


def read_metrics(folder):
    """Return the rows of a run's metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def read_repeatable_metrics(folder):
    """Return the rows of metrics.jsonl without the metrics that depend on the machine."""
    return [
        {key: value for key, value in row.items() if not key.startswith(MACHINE)}
        for row in read_metrics(folder)
    ]


def load_policy(folder, iteration):
    """Return the weights in a run's checkpoint."""
    return torch.load(folder / f"checkpoints/{iteration:06d}/policy.pt")
