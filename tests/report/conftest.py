"""Synthetic run folders, written with the package's own metrics and logger.

The numbers are like those that a prototype measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from grpo_guard.clipping.clip import Clip
from grpo_guard.clipping.fixed import Fixed
from grpo_guard.clipping.weight import inverse_dt, uniform
from grpo_guard.diagnostics.ratios import ratio_metrics
from grpo_guard.logger import RunInfo
from grpo_guard.logger.folder import Folder
from grpo_guard.metrics import Metric, scalar
from grpo_guard.ratio import log_ratio_norm, log_ratio_raw
from grpo_guard.types import Drift, ImageScores, Pictures, Replay, Rows, Schedule

TIMES = [1.0, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0.0]
STD = [0.700, 0.743, 0.536, 0.446, 0.392, 0.353, 0.319, 0.282, 0.225, 0.006]
GAIN = [0.040, 0.058, 0.069, 0.084, 0.103, 0.131, 0.171, 0.233, 0.335, 0.011]
DIMENSIONS = 1024

CURVES = {
    "vanilla": {
        "proxy": [0.441, 0.464, 0.473, 0.464, 0.468, 0.471, 0.463, 0.488, 0.502, 0.503],
        "facts": [0.702, 0.734, 0.724, 0.727, 0.708, 0.685, 0.676, 0.700, 0.677, 0.704],
        "exact": [0.396, 0.417, 0.359, 0.344, 0.328, 0.312, 0.281, 0.297, 0.292, 0.297],
        "clean": [0.910, 0.896, 0.892, 0.887, 0.888, 0.882, 0.884, 0.881, 0.877, 0.884],
    },
    "guard": {
        "proxy": [0.441, 0.461, 0.464, 0.475, 0.473, 0.481, 0.475, 0.479, 0.486, 0.497],
        "facts": [0.702, 0.724, 0.734, 0.727, 0.745, 0.718, 0.710, 0.705, 0.703, 0.687],
        "exact": [0.396, 0.385, 0.375, 0.349, 0.370, 0.323, 0.333, 0.292, 0.286, 0.286],
        "clean": [0.910, 0.901, 0.898, 0.889, 0.889, 0.886, 0.878, 0.874, 0.870, 0.866],
    },
}
"""Proxy and golds at every tenth iteration of 90."""

CLIPPINGS = {
    "vanilla": Clip(
        name="vanilla",
        ratio=log_ratio_raw,
        weight=uniform,
        adaptation=Fixed(),
        high=2.5e-5,
        low=2.5e-5,
    ),
    "guard": Clip(
        name="guard",
        ratio=log_ratio_norm,
        weight=inverse_dt,
        adaptation=Fixed(),
        high=2.5e-6,
        low=2.5e-6,
    ),
}

CAPTIONS = (
    "a red square",
    "two blue crosses",
    "a green triangle left of a yellow cross",
    'the word "LAMP" in red',
)

IMAGE_SCORES = tuple(
    ImageScores(scores={}, notes={"eval/proxy": lines})
    for lines in (("saw <it>", "saw more"), (), (), ())
)


def make_pictures(images: Float[Tensor, "N 3 H W"]) -> Pictures:
    """Return what an evaluation shows that keeps no scores of its prompts."""
    return Pictures(images=images, captions=CAPTIONS, scores=IMAGE_SCORES, by_prompt={})


def config(variant: str, seed: int = 0, iterations: int = 12, **other: Any) -> dict[str, Any]:
    """Return those parts of a composed configuration that matter to a report."""
    clipping = CLIPPINGS[variant]
    ratio, weight = clipping.ratio.__name__, clipping.weight.__name__
    settings = {
        "clipping": {
            "ratio": {"_target_": f"grpo_guard.ratio.{ratio}", "_partial_": True},
            "weight": {"_target_": f"grpo_guard.clipping.weight.{weight}", "_partial_": True},
            "name": clipping.name,
            "_target_": "grpo_guard.clipping.clip.Clip",
            "high": clipping.high,
            "low": clipping.low,
        },
        "data": {"_target_": "grpo_guard.data.world.World", "prompts": 12, "repeats": 16},
        "reward": {"_target_": "grpo_guard.reward.pickscore.PickScore"},
        "optim": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 2e-4},
        "eval": {"_target_": "grpo_guard.eval.heldout.HeldOut", "prompts": 192, "every": 10},
        "_target_": "grpo_guard.experiment.Experiment",
        "seed": seed,
        "iterations": iterations,
        "steps": 10,
        "updates": 2,
        "steps_per_sample": 4,
        "output": f"runs/{variant}_seed{seed}",
    }
    return settings | other


def write_run(
    folder: Path,
    variant: str,
    *,
    seed: int = 0,
    iterations: int = 12,
    windows: Sequence[range] = (range(9),),
    **other: Any,
) -> Path:
    """Write a finished run folder; its iterations train the steps of each window in turn."""
    folder.mkdir(parents=True)
    settings = config(variant, seed, iterations, **other)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    random = torch.Generator().manual_seed(1000 * len(variant) + seed)
    info = RunInfo(folder=folder, config=settings, iterations=iterations)
    with Folder(flush_every=50).open(info) as sink:
        for iteration in range(iterations + 1):
            metrics = evaluation(variant, iteration, iterations, random)
            images = pictures(iteration / iterations, seed)
            sink.show(iteration, make_pictures(images))
            if iteration < iterations:
                window = windows[iteration % len(windows)]
                metrics |= training(variant, iteration, window, random)
            sink.log(iteration, metrics)
    return folder


def evaluation(
    variant: str, iteration: int, iterations: int, random: torch.Generator
) -> dict[str, Metric]:
    """Return proxy, golds and statistics; the first two are interpolated in `CURVES`."""
    at = 90 * iteration / iterations
    scores = {
        name: float(np.interp(at, np.arange(0, 91, 10), values))
        for name, values in CURVES[variant].items()
    }
    noise = (0.003 * torch.randn(6, generator=random)).tolist()
    proxy = scores.pop("proxy")
    golds = scores | {
        "pickscore_gold": 0.82 - 2e-4 * at + noise[5],
        "dark_fraction": 0.02 * (1 + 0.003 * at + 3 * noise[0]),
        "edge_density": 0.11 * (1 + 0.003 * at + 3 * noise[1]),
    }
    metrics = {f"eval/gold/{name}": value for name, value in golds.items()}
    metrics |= {"eval/proxy/pickscore": proxy, "time/eval": 6.0}
    return {key: scalar(value) for key, value in metrics.items()}


def training(
    variant: str, iteration: int, window: range, random: torch.Generator
) -> dict[str, Metric]:
    """Return everything that an iteration logs."""
    schedule = make_schedule(window)
    limits = CLIPPINGS[variant].limits(DIMENSIONS, len(schedule))
    replay = make_replay(variant, window, random)
    reward = 0.44 + 5e-4 * iteration + 0.01 * float(torch.randn((), generator=random))
    metrics = {
        "reward/pickscore": reward,
        "reward/total": reward,
        "reward/failed": 0.0,
        "loss/policy": -1e-6,
        "grad_norm": 0.4,
        "watch/edge_density": 0.12,
        "watch/diversity": 0.3 - 2e-3 * iteration,
        "time/rollout": 2.9,
        "time/reward": 0.6,
        "time/update": 6.1,
        "throughput/images_per_s": 19.8,
        "images": 192.0 * (iteration + 1),
        "update": 2.0 * (iteration + 1),
        "lr": 2e-4,
        "memory/peak_bytes": 2e9,
    }
    scalars = {key: scalar(value) for key, value in metrics.items()}
    return ratio_metrics(replay, schedule, limits) | scalars


def make_schedule(window: range) -> Schedule:
    """Return ten steps with shift 3 and noise level 0.7; those of the window are trained."""
    t = torch.tensor(TIMES)
    return Schedule(
        t=t[:-1],
        t_next=t[1:],
        x_gain=torch.ones(10),
        v_gain=-torch.tensor(GAIN),
        std=torch.tensor(STD),
        trained=torch.isin(torch.arange(10), torch.tensor(window)),
    )


def make_replay(variant: str, window: range, random: torch.Generator) -> Replay:
    """Return the second update of an iteration: 96 samples with four steps each.

    The policy has moved most at low noise.
    """
    step = torch.randint(window.start, window.stop, (384,), generator=random).sort().values
    std, gain = torch.tensor(STD)[step], torch.tensor(GAIN)[step]
    jitter = 0.8 + 0.4 * torch.rand(384, generator=random)
    moved = gain * torch.logspace(-2.1, -1.78, 9)[step] * jitter
    along = moved / DIMENSIONS**0.5 * torch.randn(384, generator=random)
    drift = Drift(along=along, square=moved.square(), std=std, gain=gain, dimensions=DIMENSIONS)
    advantage = torch.randn(384, generator=random)
    rows = Rows(sample=torch.arange(384) // 4, step=step, advantage=advantage)
    clipping = CLIPPINGS[variant]
    schedule = make_schedule(window)
    objective = clipping(drift, rows, schedule, clipping.limits(DIMENSIONS, len(schedule)))
    clipped = (objective.high & (advantage > 0)) | (objective.low & (advantage < 0))
    scale = gain / std if variant == "vanilla" else gain
    gradient = clipping.weight(schedule)[step] * scale * advantage.abs() * ~clipped
    return Replay(
        rows=rows,
        drift=drift,
        objective=objective,
        penalty=torch.zeros_like(gradient),
        gradient=gradient,
    )


def pictures(progress: float, seed: int) -> torch.Tensor:
    """Return a coloured square per caption, noisier as training goes on."""
    images = torch.full((len(CAPTIONS), 3, 64, 64), 0.93)
    colors = torch.tensor([[0.8, 0.2, 0.2], [0.2, 0.3, 0.8], [0.2, 0.6, 0.3], [0.7, 0.1, 0.1]])
    for k, color in enumerate(colors):
        images[k, :, 16:44, 10 + 6 * k : 34 + 6 * k] = color[:, None, None]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + 0.15 * progress * noise).clamp(0, 1)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write a vanilla and a Guard run; tests must not change them."""
    folder = tmp_path_factory.mktemp("runs")
    return write_run(folder / "vanilla", "vanilla"), write_run(folder / "guard", "guard")


@pytest.fixture(scope="session")
def moving(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write a vanilla and a Guard run whose window moves; tests must not change them.

    The window jumps over steps 3 and 4 and never reaches 7 and 8.
    """
    folder = tmp_path_factory.mktemp("moving")
    windows = (range(2), range(1, 3), range(5, 7))
    vanilla, guard = (
        write_run(folder / name, name, iterations=6, windows=windows)
        for name in ("vanilla", "guard")
    )
    return vanilla, guard
