"""Trains on the pretended device: python worker.py LIBRARY FOLDER. Writes what it saw as JSON."""

import dataclasses
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from composing import compose_run
from torch.nn import functional as F
from toy import ADAPTIVE, experiment

import grpo_guard.train
import pretended
from grpo_guard.command.benches import gpu_plan
from grpo_guard.console import cli
from grpo_guard.cost.ledger import ImitateGpu
from grpo_guard.metrics import Clock
from grpo_guard.old_policy.replay import ReplayedOldPolicy
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.schema import RunError, component
from grpo_guard.session import prepare
from grpo_guard.strategy.single import Single
from grpo_guard.train import iterate, train

SMALL = (
    "iterations=1", "data.prompts=2", "data.repeats=4", "microbatch=8", "steps=3",
    "steps_per_sample=null", "eval.prompts=2", "eval.pictures=2", "eval.steps=2", "logger=none",
    "selftest=false", "resume=never",
)  # fmt: skip
"""An iteration and two evaluations of the shipped model that take seconds."""


PLANNED = ("loop_sd3_tiny_lora_bfloat16", "resume")
"""Checks of the plan for a GPU that are tried."""
HALF = ("backbone=sd3_tiny_lora", "backbone.dtype=bfloat16", "old_policy=tangent")
"""The shipped adapters in half precision."""


@component
class OnPretended(Single):
    """One process on the pretended device."""

    def start(self):
        torch.set_num_threads(1)
        return Ranks(device=torch.device(pretended.NAME, 0))


@component
class CountedBackbone:
    """A backbone that notes the bytes on the device before it is loaded."""

    inner: Any
    """The backbone that is loaded."""
    live: list[int]
    """Bytes before each load."""

    def load(self, device):
        self.live.append(torch.pretended.memory_allocated())
        return self.inner.load(device)


PRETENDED = OnPretended(device="cpu", threads=1)


def train_toy(folder):
    """Train the toy on both devices, and on the pretended one also from a state."""
    settings = {"clipping": ADAPTIVE, "old_policy": ReplayedOldPolicy(), "asynchronous": True}
    for name, strategy in (("cpu", Single(device="cpu", threads=1)), ("device", PRETENDED)):
        (folder / name).mkdir()
        train(experiment(folder / name, strategy=strategy, **settings), {})
    (folder / "resumed").mkdir()
    state = str(folder / "device/state/000002")
    train(experiment(folder / "resumed", strategy=PRETENDED, resume=state, **settings), {})


def train_shipped(folder, *overrides):
    """Train a shipped model twice; return the bytes that lived before each was built."""
    live = []
    for job in range(2):
        output = folder / f"shipped_{job}"
        output.mkdir(exist_ok=True)
        exp = cli.build(compose_run(*SMALL, f"output={output}", *overrides))
        backbone = CountedBackbone(inner=exp.backbone, live=live)
        train(dataclasses.replace(exp, strategy=PRETENDED, backbone=backbone), {})
    return live


def try_plan(folder):
    """Train as the plan of `bench.py gpu` does at small size; return the names of the checks."""
    names = []
    for check in gpu_plan.plan(folder / "plan"):
        if check.name in PLANNED:
            exp = cli.build(compose_run(*check.words[1:], "strategy=single"))
            Path(exp.output).mkdir(parents=True, exist_ok=True)
            train(dataclasses.replace(exp, strategy=PRETENDED), {})
            names.append(check.name)
    return names


class WaitClock(Clock):
    """A clock that counts how often the host waits for the device, instead of seconds."""

    @contextmanager
    def __call__(self, name):
        before = torch.pretended.count_waits()
        yield
        self.seconds[name] = torch.pretended.count_waits() - before


def count_waits(**changes):
    """Return the waits of an iteration by phase; those of its metrics are the rest of `all`."""
    session, _ = iterate(prepare(experiment(strategy=PRETENDED, **changes)), 0)
    with mock.patch.object(grpo_guard.train, "Clock", WaitClock):
        before = torch.pretended.count_waits()
        _, metrics = iterate(session, 1)
        whole = torch.pretended.count_waits() - before
    phases = {name: metrics[f"time/{name}"].value for name in ("rollout", "reward", "update")}
    return {**phases, "all": whole}


def run_out_of_memory():
    """Return the line with which an iteration ends whose memory does not suffice."""
    session = prepare(experiment(strategy=PRETENDED))
    torch.pretended.limit_memory(torch.pretended.memory_allocated() + 2**12)
    try:
        iterate(session, 0)
    except RunError as error:
        return str(error)
    finally:
        torch.pretended.limit_memory(2**62)
    return ""


def compare_autocast():
    """Return the dtype of each function's result: under autocast, and as `ImitateGpu` has it."""
    device = torch.device(pretended.NAME, 0)
    x = torch.randn(2, 4, 4, 8, device=device)
    weight = torch.randn(8, 8, device=device)
    kernel = torch.randn(3, 4, 1, 1, device=device)
    calls = {
        "linear": lambda x: F.linear(x, weight),
        "matmul": lambda x: x @ weight,
        "conv2d": lambda x: F.conv2d(x, kernel.to(x.dtype)),
        "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
        "layer_norm": lambda x: F.layer_norm(x, (8,)),
        "rms_norm": lambda x: F.rms_norm(x, (8,)),
        "group_norm": lambda x: F.group_norm(x, 2),
        "softmax": lambda x: x.softmax(-1),
        "pow": lambda x: x**2,
        "rsqrt": lambda x: x.abs().rsqrt(),
        "sum": lambda x: x.sum(-1),
        "exp": lambda x: x.exp(),
        "mean": lambda x: x.mean(-1),
        "gelu": lambda x: F.gelu(x, approximate="tanh"),
        "silu": F.silu,
    }
    table = {}
    for name, call in calls.items():
        with torch.autocast(pretended.NAME, torch.bfloat16):
            actual = call(x.bfloat16()).dtype
        with ImitateGpu(torch.bfloat16):
            imitated = call(x.cpu().bfloat16() if name == "attention" else x.bfloat16()).dtype
        table[name] = [str(actual), str(imitated)]
    return table


def main(library, folder):
    pretended.load(library)
    train_toy(folder)
    report = {
        "live": train_shipped(folder, *HALF),
        "planned": try_plan(folder),
        "shortage": run_out_of_memory(),
        "waits": {
            "plain": count_waits(),
            "longer": count_waits(steps=9),
            "smaller": count_waits(microbatch=8),
        },
        "autocast": compare_autocast(),
    }
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
