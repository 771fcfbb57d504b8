"""One of two processes that run the toy under every strategy: python worker.py FOLDER."""

import functools
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
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "scripts"))

from toy import D, Grey, Model, Policy, experiment

from benches.scaling import unkept
from grpo_guard.cost.traffic import Wire, calls, exchanged, sizes
from grpo_guard.ema.average import Average
from grpo_guard.lifecycle.checkpoint import Checkpoints
from grpo_guard.reward import rewards
from grpo_guard.session import prepare
from grpo_guard.strategy.ddp import Ddp
from grpo_guard.strategy.fsdp import Fsdp
from grpo_guard.strategy.single import Single
from grpo_guard.strategy.zero import Zero
from grpo_guard.train import iterate, train
from grpo_guard.types import RunError, component

SINGLE = Single(device="cpu", threads=1)
SHARED = {"timeout": 60.0, "threads": 1}
AVERAGED = ("ddp", "fsdp", "zero1", "zero2")
KEPT = Checkpoints(every=1, keep=5, export_every=2, best=None, asynchronous=True)
ADAMW = functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)


@component
class Talkative(Grey):
    """Says which prompt a picture is of."""

    def load(self, device):
        score = Grey.load(self, device)
        return lambda images, prompts: replace(
            score(images, prompts), notes=tuple((p.text,) for p in prompts)
        )


@component
class Contest(Grey):
    """How much brighter a picture is than the others of its prompt that are scored with it."""

    compares = True

    def load(self, device):
        def score(images, prompts):
            bright, texts = images.mean((1, 2, 3)), [prompt.text for prompt in prompts]
            alike = torch.tensor([[float(one == other) for other in texts] for one in texts])
            return rewards(contest=bright - alike @ bright / alike.sum(1) + 1e-3 * alike.sum(1))

        return score


class Layers(Policy):
    """Blocks, and a map that belongs to none."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(D, D) for _ in range(3))

    def forward(self, x, t, condition):
        v = super().forward(x, t, condition).flatten(1)
        for block in self.blocks:
            v = v + block(v)
        return v.view_as(x)


@component
class Layered:
    def load(self, device):
        model = Model()
        model.policy = Layers()
        return model


def strategies(processes):
    """Every strategy of so many processes."""
    sharded = functools.partial(Fsdp, processes=processes, offload=False, **SHARED)
    return {
        "ddp": Ddp(processes=processes, **SHARED),
        "fsdp": sharded(replicas=1, reduce="update"),
        "fsdp_reduced": sharded(replicas=1, reduce="microbatch"),
        "hsdp": sharded(replicas=processes, reduce="update"),
    } | {
        f"zero{stage}": Zero(stage=stage, processes=processes, offload=False, **SHARED)
        for stage in (1, 2, 3)
    }


def run(folder, name, strategy, iterations=5, **changes):
    """Train the toy in a folder of that name."""
    (folder / name).mkdir(exist_ok=True)
    changes = {"optim": ADAMW, "microbatch": 16, "checkpoint": KEPT} | changes
    exp = experiment(folder / name, strategy=strategy, iterations=iterations, **changes)
    train(
        replace(
            exp, eval=replace(exp.eval, prompts=4, pictures=3, gold={"grey": Talkative(target=0.2)})
        ),
        {},
    )


def listen(folder, name, strategy):
    """What a second iteration exchanges, as predicted and as counted."""
    exp = experiment(strategy=strategy, backbone=Layered(), optim=ADAMW, microbatch=16)
    size = sizes(Layers(), torch.float32)
    with patch.object(Zero, "config", unkept(Zero.config)):
        session = prepare(exp)
    session, _ = iterate(session, 0)
    with Wire() as wire:
        iterate(session, 1)
    found = exchanged(strategy, size, calls(exp)), wire.traffic
    told = [
        {f"{kind} among {among}": count for (kind, among), count in one.items() if among > 1}
        for one in found
    ]
    (folder / f"{name}_{session.ranks.rank}.traffic.json").write_text(json.dumps(told))


def hang(folder):
    """One process does not come, however long the other takes to say so; that takes 3 seconds."""
    ranks, told, last = (
        Ddp(processes=2, timeout=3.0, threads=1).start(),
        folder / "hung_0.txt",
        time.monotonic() + 60,
    )
    while ranks.rank and not told.exists() and time.monotonic() < last:
        time.sleep(0.05)
    try:
        ranks.any(False)
    except RunError as error:
        (folder / f"hung_{ranks.rank}.txt").write_text(str(error))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name, strategy in strategies(int(os.environ["WORLD_SIZE"])).items():
        run(folder, name, strategy)
        run(
            folder,
            f"{name}_gone_on",
            strategy,
            iterations=5,
            resume=str(folder / "single/state/000002"),
        )
        listen(folder, name, strategy)
        if name == "ddp":
            run(folder, "ddp_compared", strategy, iterations=2, reward=Contest())
        if name in AVERAGED:
            run(
                folder,
                f"{name}_averaged",
                strategy,
                iterations=2,
                ema=Average(decay=0.5, every=1, on_cpu=False),
            )
    hang(folder)
