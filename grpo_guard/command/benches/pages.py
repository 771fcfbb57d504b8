"""The table of `bench.py pages`: what the page of compare.py costs for many long runs."""

from __future__ import annotations

import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from jaxtyping import UInt8
from numpy import ndarray
from omegaconf import OmegaConf
from rich.table import Table

from grpo_guard.command.python import compose_settings
from grpo_guard.logger import RunInfo
from grpo_guard.logger.folder import Folder
from grpo_guard.report import analyse_runs, read_readable_runs, write_page
from grpo_guard.types import ImageScores, Pictures
from grpo_guard.world import captions, render

ARMS = ("vanilla", "guard", "rationorm", "dppo")
"""Choices of conf/clipping that the runs belong to in turn."""
EVERY = 10
"""Iterations from one evaluation to the next."""
PROMPTS = 192
"""Prompts of an evaluation."""
PROMPTS_SHOWN = captions.all_prompts(("shapes",), heldout=True)[:16]
"""Prompts of the pictures that an evaluation shows."""
STEPS = 9
"""Trained denoising steps."""
EDGES = np.linspace(-24, 24, 97)
"""Edges of the histograms, in clip ranges."""
GOLDS = ("facts", "exact", "clean", "pickscore_gold", "dark_fraction", "edge_density")
PER_STEP = (
    "ratio_raw/mean", "ratio_raw/std", "ratio_norm/mean", "ratio_norm/std", "ratio_own/mean",
    "ratio_own/std", "clip/high", "clip/low", "clip/high_pos_adv", "clip/low_neg_adv", "grad_share",
)  # fmt: skip
PER_ITERATION = (
    "reward/total", "reward/group_std", "advantage/zero_std_groups", "grad_norm", "watch/diversity",
    "time/rollout", "time/reward", "time/update", "time/total", "throughput/images_per_s",
)  # fmt: skip


def time_page(runs: int, iterations: int) -> Table:
    """Write runs with made-up numbers, and time every part of the page that compares them."""
    table = Table("part", "seconds of CPU", title=f"{runs} runs of {iterations} iterations")
    with tempfile.TemporaryDirectory() as name:
        folders = write_runs(Path(name), runs, iterations)
        clock = [time.process_time()]
        read, _ = read_readable_runs(folders)
        clock.append(time.process_time())
        results = analyse_runs(read)
        clock.append(time.process_time())
        page = write_page(results, Path(name) / "page")
        clock.append(time.process_time())
        size = page.stat().st_size / 1e6
    for part, seconds in zip(("read", "analyse", "write"), np.diff(clock), strict=True):
        table.add_row(part, f"{seconds:.1f}")
    table.add_row("all", f"{clock[-1] - clock[0]:.1f}")
    table.caption = f"index.html: {size:.1f} MB"
    return table


def write_runs(folder: Path, runs: int, iterations: int) -> list[Path]:
    """Write run folders that differ in their clipping and seed; return them."""
    return [
        write_run(folder / f"{clipping}_{seed}", clipping, seed, iterations)
        for seed, clipping in [(i // len(ARMS), ARMS[i % len(ARMS)]) for i in range(runs)]
    ]


def write_run(folder: Path, clipping: str, seed: int, iterations: int) -> Path:
    """Write one finished run, as a run writes itself."""
    folder.mkdir(parents=True)
    words = [f"clipping={clipping}", f"seed={seed}", f"iterations={iterations}", "output=unused"]
    config = OmegaConf.to_container(compose_settings(words), resolve=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    random = np.random.default_rng([ARMS.index(clipping), seed])
    rows = make_rows(iterations, random)
    images = render.render(PROMPTS_SHOWN, random)
    with Folder(flush_every=1).open(RunInfo(folder=folder, config={}, iterations=0)) as sink:
        for row in rows[::EVERY]:
            pictures = make_pictures(images, row["iteration"] / iterations, random)
            sink.show(int(row["iteration"]), pictures)
            row |= {key: float(np.mean(values)) for key, values in pictures.by_prompt.items()}
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    np.savez_compressed(folder / "histograms.npz", **make_histograms(iterations, random))
    return folder


def make_rows(iterations: int, random: np.random.Generator) -> list[dict[str, float]]:
    """Return the numbers of every iteration, and of the evaluation after the last, with scores."""
    keys = [*PER_ITERATION, *(f"{key}/{tt:02d}" for key in PER_STEP for tt in range(STEPS))]
    rows = [
        {"iteration": i, "images": 192.0 * (i + 1), **dict(zip(keys, values, strict=True))}
        for i, values in enumerate(random.random((iterations, len(keys))).tolist())
    ]
    return [*rows, {"iteration": iterations}]


def make_histograms(iterations: int, random: np.random.Generator) -> dict[str, ndarray]:
    """Return what histograms.npz holds: normal log-ratios, wider from step to step."""
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    arrays = {"iteration": np.arange(iterations), "edges": EDGES}
    for kind in ("raw", "norm", "own"):
        for tt in range(STEPS):
            density = np.exp(-((middle / (1 + tt)) ** 2) / 2) * np.diff(EDGES)
            counts = random.poisson(384 * density / density.sum(), (iterations, len(middle)))
            arrays[f"ratio_{kind}/hist/{tt:02d}"] = counts.astype(np.int32)
    return arrays


def make_pictures(
    images: UInt8[ndarray, "N H W 3"], progress: float, random: np.random.Generator
) -> Pictures:
    """Return what an evaluation shows: noisier pictures, and scores that drift apart."""
    noise = 0.1 * progress * random.standard_normal(images.shape)
    pictures = torch.from_numpy((images / 255 + noise).clip(0, 1)).float().movedim(3, 1)
    scores = {"eval/proxy/pickscore": 0.4 + 0.3 * math.sqrt(progress)}
    scores |= {f"eval/gold/{name}": 0.7 - 0.1 * progress for name in GOLDS}
    by_prompt = {
        key: (level + 0.1 * random.standard_normal(PROMPTS)).tolist()
        for key, level in scores.items()
    }
    return Pictures(
        images=pictures,
        captions=tuple(prompt.text for prompt in PROMPTS_SHOWN),
        scores=tuple(
            ImageScores(scores={key: values[i] for key, values in by_prompt.items()}, notes={})
            for i in range(len(PROMPTS_SHOWN))
        ),
        by_prompt=by_prompt,
    )
