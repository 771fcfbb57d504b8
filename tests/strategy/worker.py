"""One of two processes that run the toy under every strategy: python worker.py FOLDER."""

import functools
import gc
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from toy import SHAPE, D, Grey, Indifferent, Model, Policy, experiment

from grpo_guard.command.benches.scaling import disable_stage3_caches
from grpo_guard.cost.traffic import TrafficCounter, count_calls, measure_policy
from grpo_guard.data import plan
from grpo_guard.ema.average import Average
from grpo_guard.final_steps.euler import Euler
from grpo_guard.lifecycle.checkpoint import Checkpoints
from grpo_guard.old_policy.tangent import TangentOldPolicy
from grpo_guard.reward import rewards_from_parts
from grpo_guard.rollout import rollout
from grpo_guard.schema import RunError, component
from grpo_guard.sde import schedule
from grpo_guard.sde.ode import Ode
from grpo_guard.session import prepare
from grpo_guard.strategy.ddp import Ddp
from grpo_guard.strategy.fsdp import Fsdp
from grpo_guard.strategy.single import Single
from grpo_guard.strategy.zero import Zero
from grpo_guard.train import iterate, train

SINGLE = Single(device="cpu", threads=1)
SHARED = {"timeout": 60.0, "threads": 1}
UNEVEN = ("ddp", "fsdp", "zero3")
"""Strategies that also train with processes of which one has fewer rows to learn from."""
AVERAGED = ("ddp", "fsdp", "zero1", "zero2")
CHECKPOINTS = Checkpoints(every=1, keep=5, export_every=2, best=None, asynchronous=True)
ADAMW = functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
AVERAGE = Average(decay=0.5, every=1, on_cpu=False)


@component
class Noted(Grey):
    """Scores as Grey does, and notes the prompt of each image."""

    def load(self, device):
        score = Grey.load(self, device)
        return lambda images, prompts: replace(
            score(images, prompts), notes=tuple((p.text,) for p in prompts)
        )


@component
class Contest(Grey):
    """Scores how much brighter an image is than the images of its prompt scored with it."""

    compares = True

    def load(self, device):
        def score(images, prompts):
            bright = images.mean((1, 2, 3))
            texts = [prompt.text for prompt in prompts]
            alike = [[float(one == other) for other in texts] for one in texts]
            alike = torch.tensor(alike, device=images.device)
            mean_bright = alike @ bright / alike.sum(1)
            return rewards_from_parts(contest=bright - mean_bright + 1e-3 * alike.sum(1))

        return score


class BlockPolicy(Policy):
    """The toy's policy with blocks, so that parameters lie in blocks and outside them."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(D, D) for _ in range(3))

    def forward(self, x, t, condition):
        v = super().forward(x, t, condition).flatten(1)
        for block in self.blocks:
            v = v + block(v)
        return v.view_as(x)


@component
class BlockBackbone:
    """The toy's backbone with a BlockPolicy."""

    lora = None

    def load(self, device):
        return Model(device, BlockPolicy)


def strategies(processes):
    """Return every strategy of several processes by name."""
    fsdp = functools.partial(Fsdp, processes=processes, offload=False, **SHARED)
    zero = functools.partial(Zero, processes=processes, offload=False, **SHARED)
    return {
        "ddp": Ddp(processes=processes, **SHARED),
        "fsdp": fsdp(replicas=1, reduce="update"),
        "fsdp_reduced": fsdp(replicas=1, reduce="microbatch"),
        "hsdp": fsdp(replicas=processes, reduce="update"),
        "zero1": zero(stage=1),
        "zero2": zero(stage=2),
        "zero3": zero(stage=3),
    }


def run(folder, name, strategy, iterations=5, **changes):
    """Train the toy in a folder of that name."""
    (folder / name).mkdir(exist_ok=True)
    changes = {"optim": ADAMW, "microbatch": 16, "checkpoint": CHECKPOINTS} | changes
    exp = experiment(folder / name, strategy=strategy, iterations=iterations, **changes)
    evaluation = replace(exp.eval, prompts=4, pictures=3, gold={"grey": Noted(target=0.2)})
    train(replace(exp, eval=evaluation), {})


def compare_traffic(folder, name, strategy):
    """Write what a second iteration exchanges, as predicted and as counted."""
    exp = experiment(strategy=strategy, backbone=BlockBackbone(), optim=ADAMW, microbatch=16)
    sizes = measure_policy(BlockPolicy(), torch.float32)
    with patch.object(Zero, "config", disable_stage3_caches(Zero.config)):
        session = prepare(exp)
    session, _ = iterate(session, 0)
    with TrafficCounter() as counter:
        iterate(session, 1)
    tables = [
        {
            f"{message.kind} among {message.processes}": size
            for message, size in traffic.items()
            if message.processes > 1
        }
        for traffic in (strategy.count_traffic(sizes, count_calls(exp)), counter.traffic)
    ]
    (folder / f"{name}_{session.ranks.rank}.traffic.json").write_text(json.dumps(tables))


def draw_through_engine(folder, name, strategy):
    """Write latents drawn through DeepSpeed's engine and through the policy in it.

    Both rollouts and evaluations are drawn, before and after each of two iterations.
    """
    session = prepare(
        experiment(strategy=strategy, backbone=BlockBackbone(), optim=ADAMW, microbatch=16)
    )
    exp = session.exp
    batch = plan(exp.data, session.split, exp.seed, 0)
    condition = session.model.encode([prompt.text for prompt in batch.prompts])
    plans = {
        "rollout": session.schedule(0),
        "evaluation": schedule(Ode(), session.model.times(exp.steps)),
    }

    def draw(policy, steps):
        trajectory = rollout(
            policy, steps, batch, condition, SHAPE,
            address=(exp.seed, 0), microbatch=exp.microbatch, final_steps=Euler(),
        )  # fmt: skip
        assert not trajectory.x.requires_grad
        return trajectory.x

    drawn = []
    for iteration in range(3):
        for steps in plans.values():
            engine = draw(session.learner.policy, steps)
            inner = draw(session.model.policy, steps)
            drawn.append((engine, inner))
        if iteration < 2:
            session, _ = iterate(session, iteration)
    torch.save(drawn, folder / f"{name}_{session.ranks.rank}.latents.pt")


def miss_a_barrier(folder):
    """Rank 1 stays away from a barrier until rank 0 has written the error that names it."""
    ranks = Ddp(processes=2, timeout=3.0, threads=1).start()
    first_message = folder / "missing_0.txt"
    deadline = time.monotonic() + 60
    while ranks.rank and not first_message.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        ranks.any(False)
    except RunError as error:
        (folder / f"missing_{ranks.rank}.txt").write_text(str(error))


def main(folder):
    for name, strategy in strategies(int(os.environ["WORLD_SIZE"])).items():
        gc.freeze()  # collections at the begin of each run are quicker then
        run(folder, name, strategy)
        state = str(folder / "single/state/000002")
        run(folder, f"{name}_resumed", strategy, iterations=5, resume=state)
        compare_traffic(folder, name, strategy)
        if name == "ddp":
            run(folder, "ddp_compared", strategy, iterations=2, reward=Contest())
            run(folder, "ddp_tangent", strategy, iterations=2, old_policy=TangentOldPolicy())
        if name in UNEVEN:
            run(
                folder, f"{name}_uneven", strategy, iterations=2, microbatch=4, reward=Indifferent()
            )
        if name in AVERAGED:
            run(folder, f"{name}_averaged", strategy, iterations=4, ema=AVERAGE)
        if isinstance(strategy, Zero):
            draw_through_engine(folder, name, strategy)
    miss_a_barrier(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
