"""The tables of `bench.py memory`."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from rich.table import Table

from grpo_guard.cost.memory import Ledger, predict
from grpo_guard.cost.random_weights import Untrained, configurations
from grpo_guard.experiment import Experiment
from grpo_guard.pipeline.model import modules
from grpo_guard.session import Session, prepare
from grpo_guard.train import iterate
from lib import cli

GIB = 2**30
FSDP = ["strategy=fsdp", "strategy.processes=8"]
CARDS: Mapping[str, tuple[int, list[str]]] = {
    "gpu_24gb": (24, []),
    "gpu_80gb": (80, []),
    "gpu_8x80gb": (80, FSDP),
}
TRAINED: Mapping[str, list[str]] = {"LoRA": [], "full": ["backbone.lora=null"]}
RECIPES = {"sd3_medium": "sd35_pickscore", "flux_dev": "flux_pickscore_flow"}
SHORT = [
    "reward=statistics",
    "watch=none",
    "asynchronous=false",
    "eval.prompts=2",
    "eval.pictures=2",
    "eval.kl=false",
]
TINY = [
    *SHORT, "data.prompts=2", "data.repeats=8", "microbatch=8", "backbone.microbatch=8", "steps=3",
    "steps_per_sample=null", "updates=1",
]  # fmt: skip
SMALL = {
    "sd3_tiny": TINY,
    "sd3_tiny, guidance, kl": [*TINY, "backbone.guidance=4.5", "kl=x"],
    "sd3_tiny, checkpointing": [*TINY, "backbone.gradient_checkpointing=true"],
    "sd3_tiny, accumulation, ema": [*TINY, "microbatch=4", "ema=average", "old_policy=replay"],
    "sd3_tiny, LoRA": [*TINY, "backbone=sd3_tiny_lora"],
    "flux_tiny": [*TINY, "backbone=flux_tiny"],
}
WIDE = {
    "num_layers": 6,
    "num_attention_heads": 8,
    "attention_head_dim": 64,
    "caption_projection_dim": 512,
}
"""Of a transformer between the embedded one and the published ones."""


def composed(overrides: Sequence[str]) -> Experiment:
    """The experiment of some overrides."""
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        return cli.build(compose("train", [*overrides, "output=unused", "logger=none"]))


def parts(overrides: Sequence[str]) -> Table:
    """What is held, phase beside phase."""
    found = predict(composed(overrides))
    shown, names = (
        Table("GiB", *found.phases),
        dict.fromkeys(name for held in found.phases.values() for name in held),
    )
    for name, size in found.held.items():
        shown.add_row(name, *[f"{size / GIB:.2f}"] * len(found.phases))
    for name in names:
        shown.add_row(name, *(f"{held.get(name, 0) / GIB:.2f}" for held in found.phases.values()))
    held = sum(found.held.values())
    shown.add_row(
        "together",
        *(f"{(held + sum(phase.values())) / GIB:.2f}" for phase in found.phases.values()),
    )
    return shown


def presets() -> Table:
    """The shipped presets on the cards that they are made for."""
    shown = Table("preset", "backbone", "worst phase", "GiB", "of the card", "scorers GiB")
    for preset, (size, strategy) in CARDS.items():
        for backbone, recipe in RECIPES.items():
            found = predict(composed([f"experiment={recipe}", f"preset={preset}", *strategy]))
            whole, scorers = found.peak / GIB, found.held["scorers"] / GIB
            shown.add_row(
                preset,
                backbone,
                found.worst,
                f"{whole:.1f}",
                f"{whole / size:.0%}",
                f"{scorers:.1f}",
            )
    return shown


def compared() -> Table:
    """Small models, and on a GPU those of the presets, as predicted and as measured."""
    with configured("sd3_tiny", **WIDE) as folder:
        middle = [
            *TINY,
            "backbone=sd3_tiny_lora",
            "backbone.guidance=4.5",
            f"backbone.model={folder}",
        ]
        return beside(
            SMALL
            | {"512 wide, LoRA, guidance": middle}
            | (full() if torch.cuda.is_available() else {})
        )


def beside(cases: Mapping[str, Sequence[str]]) -> Table:
    """Runs as predicted, but for the encoding of prompts, and as measured."""
    shown = Table("run", "worst phase", "predicted MB", "measured MB", "ratio")
    for name, overrides in cases.items():
        exp = unjudged(composed(overrides))
        phases, found = predict(exp).totals, measured(exp)
        worst = max(phases.keys() - {"encode"}, key=lambda phase: phases[phase])
        sizes = f"{phases[worst] / 1e6:.1f}", f"{found / 1e6:.1f}"
        shown.add_row(name, worst, *sizes, f"{phases[worst] / found:.3f}")
    return shown


def full() -> dict[str, list[str]]:
    """The presets for one GPU that it has room for, with two prompts and nothing of the scorers."""
    less = [*SHORT, "data.prompts=2", "backbone.prompt_cache=null"]
    return {
        f"{preset}, {backbone}": [f"experiment={recipe}", f"preset={preset}", *less]
        for preset, (size, strategy) in CARDS.items()
        for backbone, recipe in RECIPES.items()
        if not strategy and torch.cuda.mem_get_info()[1] > 0.95e9 * size
    }


def unjudged(exp: Experiment) -> Experiment:
    """Without gold rewards, whose work is not predicted."""
    return replace(exp, eval=replace(exp.eval, gold={}))


@contextmanager
def configured(model: str, **transformer: int) -> Iterator[Path]:
    """The configurations of a model whose transformer is of other sizes."""
    configs: dict[str, dict[str, Any]] = configurations(model)
    configs["transformer"] = configs["transformer"] | transformer
    with TemporaryDirectory() as folder:
        for part, config in configs.items():
            (Path(folder) / part).mkdir()
            (Path(folder) / part / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield Path(folder)


def measured(exp: Experiment) -> int:
    """The most bytes alive in the second iteration and its evaluation, with random weights.

    Of a GPU's allocator, or of all tensors on the CPU.
    """
    exp = replace(exp, backbone=Untrained(recipe=exp.backbone))
    if torch.cuda.is_available():
        turn(prepare(exp), torch.cuda.reset_peak_memory_stats)
        return torch.cuda.max_memory_allocated()
    with Ledger() as ledger:
        session = prepare(exp)
        ledger.add(
            x
            for part in modules(session.model.pipe).values()
            for x in (*part.parameters(), *part.buffers())
        )
        turn(session, ledger.begin)
    return ledger.peak


def turn(session: Session, begin: Callable[[], object]) -> None:
    """An iteration, then, from `begin` on, another one and its evaluation."""
    session, _ = iterate(session, 0)
    gc.collect()
    begin()
    iterate(session, session.exp.eval.every)
    session.evaluate(session.exp.eval.every)
