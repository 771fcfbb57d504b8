"""The tables of `bench.py memory`."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hydra import compose, initialize_config_dir
from rich.table import Table

from grpo_guard.console import cli
from grpo_guard.cost.ledger import Ledger
from grpo_guard.cost.memory import Memory, predict_memory
from grpo_guard.cost.random_weights import Untrained, read_configs
from grpo_guard.experiment import Experiment
from grpo_guard.lifecycle.checkpoint import Checkpoints
from grpo_guard.pipeline.recipe import modules
from grpo_guard.session import Session, prepare
from grpo_guard.train import iterate

GIB = 2**30
CARDS: Mapping[str, tuple[int, list[str]]] = {
    "gpu_24gb": (24, []),
    "gpu_80gb": (80, []),
    "gpu_8x80gb": (80, ["strategy=fsdp", "strategy.processes=8"]),
}
"""The memory in GiB of the card that each preset is made for, and overrides of the strategy."""
CARD_SIZES = (8, 16, 24, 40, 48, 80, 140)
"""The memory in GiB of cards that there are, the smallest first."""
TRAINED: Mapping[str, list[str]] = {"LoRA": [], "full": ["backbone.lora=null"]}
"""Overrides by what is trained."""
RECIPES = {"sd3_medium": "sd35_pickscore", "flux_dev": "flux_pickscore_flow"}
"""An experiment of each large backbone."""
NO_SCORERS = [
    "reward=statistics",
    "watch=none",
    "asynchronous=false",
    "eval.prompts=2",
    "eval.pictures=2",
    "eval.kl=false",
]
"""Overrides for a run that loads no scorer and evaluates two prompts."""
TINY = [
    *NO_SCORERS, "data.prompts=2", "data.repeats=8", "microbatch=8", "backbone.microbatch=8",
    "steps=3", "steps_per_sample=null", "updates=1",
]  # fmt: skip
"""Overrides for the smallest run whose phases differ."""
SMALL_RUNS = {
    "sd3_tiny": TINY,
    "sd3_tiny, guidance, kl": [*TINY, "backbone.guidance=4.5", "kl=x"],
    "sd3_tiny, checkpointing": [*TINY, "backbone.gradient_checkpointing=true"],
    "sd3_tiny, accumulation, ema": [*TINY, "microbatch=4", "ema=average", "old_policy=replay"],
    "sd3_tiny, LoRA": [*TINY, "backbone=sd3_tiny_lora"],
    "sd3_tiny, LoRA, derivative": [
        *TINY, "backbone=sd3_tiny_lora", "updates=2", "microbatch=4", "backbone.microbatch=2",
        "backbone.gradient_checkpointing=true", "old_policy=tangent",
    ],
    "flux_tiny": [*TINY, "backbone=flux_tiny"],
}  # fmt: skip
"""Runs that are measured in seconds on a CPU."""
MIDDLE_SIZED = {
    "num_layers": 6,
    "num_attention_heads": 8,
    "attention_head_dim": 64,
    "caption_projection_dim": 512,
}
"""A transformer between the shipped one and the published ones."""


def compose_experiment(overrides: Sequence[str]) -> Experiment:
    """Build the experiment of train.py with some overrides."""
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        return cli.build(compose("train", [*overrides, "output=unused", "logger=none"]))


def describe_fit(memory: Memory) -> str:
    """Say in one line which is the smallest card with room for a run, and how much is left."""
    peak = memory.peak / GIB
    fitting = [size for size in CARD_SIZES if size >= peak]
    if not fitting:
        return f"fits no card: needs {peak:.1f} GiB, and the largest has {CARD_SIZES[-1]}"
    return (
        f"fits {fitting[0]} GiB, {fitting[0] - peak:.1f} to spare: {peak:.1f} GiB in its worst"
        f" phase, {memory.worst}"
    )


def describe_states(memory: Memory, checkpoint: Checkpoints) -> str:
    """Say in one line what the states of a run take on the disk."""
    return (
        f"a state takes {memory.state / GIB:.3g} GiB on the disk; one is written every"
        f" checkpoint.every={checkpoint.every} iterations, and checkpoint.keep={checkpoint.keep}"
        " are kept while the next is written"
    )


def make_part_table(memory: Memory) -> Table:
    """Return what a run holds in each phase, part by part."""
    phases = memory.phases.values()
    table = Table("GiB", *memory.phases)
    for name, size in memory.held.items():
        table.add_row(name, *[f"{size / GIB:.2f}"] * len(phases))
    for name in dict.fromkeys(name for phase in phases for name in phase):
        table.add_row(name, *(f"{phase.get(name, 0) / GIB:.2f}" for phase in phases))
    table.add_row("together", *(f"{total / GIB:.2f}" for total in memory.totals.values()))
    return table


def make_preset_table() -> Table:
    """Predict the peak of the shipped presets on the cards that they are made for."""
    table = Table("preset", "backbone", "worst phase", "GiB", "share of the card", "scorers GiB")
    for preset, (size, strategy) in CARDS.items():
        for backbone, recipe in RECIPES.items():
            overrides = [f"experiment={recipe}", f"preset={preset}", *strategy]
            memory = predict_memory(compose_experiment(overrides))
            peak = memory.peak / GIB
            scorers = memory.held["scorers"] / GIB
            cells = f"{peak:.1f}", f"{peak / size:.0%}", f"{scorers:.1f}"
            table.add_row(preset, backbone, memory.worst, *cells)
    return table


def compare_known_runs() -> Table:
    """Predict and measure small runs and, on a GPU, the presets that fit it."""
    with checkpoint_folder("sd3_tiny", **MIDDLE_SIZED) as folder:
        middle = [
            *TINY,
            "backbone=sd3_tiny_lora",
            "backbone.guidance=4.5",
            f"backbone.model={folder}",
        ]
        presets = presets_that_fit() if torch.cuda.is_available() else {}
        return compare_runs(SMALL_RUNS | {"512 wide, LoRA, guidance": middle} | presets)


def compare_runs(runs: Mapping[str, Sequence[str]]) -> Table:
    """Predict and measure runs, without the phase in which prompts are encoded.

    A measured run has no text encoders: it encodes every prompt as zeros.
    """
    table = Table("run", "worst phase", "predicted MB", "measured MB", "ratio")
    for name, overrides in runs.items():
        exp = remove_golds(compose_experiment(overrides))
        totals = predict_memory(exp).totals
        measured = measure_run(exp)
        worst = max(totals.keys() - {"encode"}, key=lambda phase: totals[phase])
        predicted = totals[worst]
        sizes = f"{predicted / 1e6:.1f}", f"{measured / 1e6:.1f}"
        table.add_row(name, worst, *sizes, f"{predicted / measured:.3f}")
    return table


def presets_that_fit() -> dict[str, list[str]]:
    """Return overrides of the presets for one GPU that this GPU has room for, with two prompts."""
    room = torch.cuda.mem_get_info()[1]
    small = [*NO_SCORERS, "data.prompts=2", "backbone.prompt_cache=null"]
    return {
        f"{preset}, {backbone}": [f"experiment={recipe}", f"preset={preset}", *small]
        for preset, (size, strategy) in CARDS.items()
        for backbone, recipe in RECIPES.items()
        if not strategy and room > 0.95e9 * size
    }


def remove_golds(exp: Experiment) -> Experiment:
    """Return the experiment without gold rewards, whose activations are not predicted."""
    return replace(exp, eval=replace(exp.eval, gold={}))


@contextmanager
def checkpoint_folder(model: str, **transformer: int) -> Iterator[Path]:
    """Make a folder with the configurations of a model, with other settings of its transformer."""
    configs = read_configs(model)
    configs["transformer"] = configs["transformer"] | transformer
    with TemporaryDirectory() as folder:
        for part, config in configs.items():
            (Path(folder) / part).mkdir()
            (Path(folder) / part / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield Path(folder)


def measure_run(exp: Experiment) -> int:
    """Measure the peak bytes of the second iteration and its evaluation, with random weights.

    On a GPU it is the allocator's peak, on the CPU the bytes of all tensors.
    """
    exp = replace(exp, backbone=Untrained(recipe=exp.backbone))
    if torch.cuda.is_available():
        run_second_iteration(prepare(exp), torch.cuda.reset_peak_memory_stats)
        return torch.cuda.max_memory_allocated()
    with Ledger() as ledger:
        session = prepare(exp)
        for part in modules(session.model.pipe).values():
            ledger.add([*part.parameters(), *part.buffers()])
        run_second_iteration(session, ledger.reset_peak)
    return ledger.peak


def run_second_iteration(session: Session, begin: Callable[[], object]) -> None:
    """Run an iteration; then call `begin`, and run another one and its evaluation."""
    session, _ = iterate(session, 0)
    # Cycles of the first iteration would count as living tensors of the second.
    gc.collect()
    begin()
    iterate(session, session.exp.eval.every)
    session.evaluate(session.exp.eval.every)
