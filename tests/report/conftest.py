"""Synthetic run folders, written by the program's own metrics and logger: numbers as a prototype measured them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from grpo_guard.clipping.clip import Clip
from grpo_guard.clipping.fixed import Fixed
from grpo_guard.clipping.weight import inverse_dt, uniform
from grpo_guard.logger import Run
from grpo_guard.logger.folder import Folder
from grpo_guard.metrics import Metrics, ratio_metrics, scalar
from grpo_guard.ratio import log_ratio_norm, log_ratio_raw
from grpo_guard.types import Drift, Replay, Rows, Schedule, Verdict

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
"""Evaluations every tenth iteration of 90."""

CLIPS = {
    "vanilla": Clip(ratio=log_ratio_raw, weight=uniform, clip=Fixed(), high=2.5e-5, low=2.5e-5),
    "guard": Clip(ratio=log_ratio_norm, weight=inverse_dt, clip=Fixed(), high=2.5e-6, low=2.5e-6),
}

CAPTIONS = (
    "a red square",
    "two blue crosses",
    "a green triangle left of a yellow cross",
    'the word "LAMP" in red',
)

VERDICTS = [
    Verdict(scores={}, notes={"eval/proxy": lines})
    for lines in (("saw <it>", "saw more"), (), (), ())
]

FakeRun = Callable[..., Path]


def config(objective: str, seed: int = 0, iterations: int = 12, **other: Any) -> dict[str, Any]:
    """A composed configuration, its parts that matter to a report."""
    clip = CLIPS[objective]
    found = {
        "clipping": {
            "ratio": {"_target_": f"grpo_guard.gaussian.{clip.ratio.__name__}", "_partial_": True},
            "weight": {
                "_target_": f"grpo_guard.clipping.weight.{clip.weight.__name__}",
                "_partial_": True,
            },
            "_target_": "grpo_guard.clipping.clip.Clip",
            "high": clip.high,
            "low": clip.low,
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
        "output": f"runs/{objective}_seed{seed}",
    }
    return found | other


def write(
    folder: Path,
    objective: str,
    *,
    seed: int = 0,
    iterations: int = 12,
    every: int = 1,
    windows: Sequence[range] = (range(9),),
    **other: Any,
) -> Path:
    """A finished run folder, whose iterations train the steps of each window in turn."""
    folder.mkdir(parents=True)
    settings = config(objective, seed, iterations, **other)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    random = torch.Generator().manual_seed(1000 * len(objective) + seed)
    with Folder(flush_every=50).open(
        Run(folder=folder, config=settings, iterations=iterations)
    ) as sink:
        for iteration in range(iterations + 1):
            evaluated = (
                evaluation(objective, iteration, iterations, random)
                if iteration % every == 0 or iteration == iterations
                else {}
            )
            if evaluated:
                sink.show(iteration, pictures(iteration / iterations, seed), CAPTIONS, VERDICTS)
            window = windows[iteration % len(windows)]
            trained = (
                training(objective, iteration, window, random) if iteration < iterations else {}
            )
            sink.log(iteration, evaluated | trained)
    return folder


def evaluation(objective: str, iteration: int, iterations: int, random: torch.Generator) -> Metrics:
    """Proxy, golds and statistics, interpolated in `CURVES`."""
    at = 90 * iteration / iterations
    found = {
        name: float(np.interp(at, np.arange(0, 91, 10), values))
        for name, values in CURVES[objective].items()
    }
    noise = 0.003 * torch.randn(6, generator=random)
    statistics = {"dark_fraction": 0.02, "edge_density": 0.11}
    golds = {k: v for k, v in found.items() if k != "proxy"} | {
        "pickscore_gold": 0.82 - 2e-4 * at + float(noise[5])
    }
    golds |= {
        k: v * (1 + 0.003 * at + 3 * float(e))
        for (k, v), e in zip(statistics.items(), noise, strict=False)
    }
    return {"eval/proxy/pickscore": scalar(found["proxy"]), "time/eval": scalar(6.0)} | {
        f"eval/gold/{k}": scalar(v) for k, v in golds.items()
    }


def training(objective: str, iteration: int, window: range, random: torch.Generator) -> Metrics:
    """Everything an iteration logs."""
    schedule, replay = schedule_(window), replay_steps(objective, window, random)
    bounds = CLIPS[objective].bounds(DIMENSIONS, len(schedule))
    reward = 0.44 + 5e-4 * iteration + 0.01 * float(torch.randn((), generator=random))
    plain = {
        "reward/pickscore": reward,
        "reward/total": reward,
        "reward/failed": 0.0,
        "loss/policy": -1e-6,
        "grad_norm": 0.4,
    }
    plain |= {"watch/edge_density": 0.12, "watch/diversity": 0.3 - 2e-3 * iteration}
    plain |= {
        "time/rollout": 2.9,
        "time/reward": 0.6,
        "time/update": 6.1,
        "throughput/images_per_s": 19.8,
    }
    plain |= {
        "images": 192.0 * (iteration + 1),
        "update": 2.0 * (iteration + 1),
        "lr": 2e-4,
        "memory/peak_bytes": 2e9,
    }
    return ratio_metrics(replay, schedule, bounds) | {k: scalar(v) for k, v in plain.items()}


def schedule_(window: range) -> Schedule:
    """Ten steps, shift 3, a = .7, of which those of a window are trained."""
    t = torch.tensor(TIMES)
    gain = torch.tensor(GAIN)
    trained = torch.isin(torch.arange(10), torch.tensor(window))
    return Schedule(
        t=t[:-1],
        t_next=t[1:],
        x_gain=torch.ones(10),
        v_gain=-gain,
        std=torch.tensor(STD),
        trained=trained,
    )


def replay_steps(objective: str, window: range, random: torch.Generator) -> Replay:
    """An iteration's second update: 96 samples, four steps each, of a policy that moved most at low noise."""
    step = torch.randint(window.start, window.stop, (384,), generator=random).sort().values
    std, gain = torch.tensor(STD)[step], torch.tensor(GAIN)[step]
    moved = (
        gain
        * torch.logspace(-2.1, -1.78, 9)[step]
        * (0.8 + 0.4 * torch.rand(384, generator=random))
    )
    along = moved / DIMENSIONS**0.5 * torch.randn(384, generator=random)
    drift = Drift(along=along, square=moved.square(), std=std, gain=gain, dimensions=DIMENSIONS)
    rows = Rows(
        sample=torch.arange(384) // 4, step=step, advantage=torch.randn(384, generator=random)
    )
    clip = CLIPS[objective]
    objective_ = clip(drift, rows, schedule_(window))
    stopped = (objective_.high & (rows.advantage > 0)) | (objective_.low & (rows.advantage < 0))
    scale = gain / std if objective == "vanilla" else gain
    gradient = clip.weight(schedule_(window))[step] * scale * rows.advantage.abs() * ~stopped
    return Replay(
        rows=rows,
        drift=drift,
        objective=objective_,
        penalty=torch.zeros_like(gradient),
        gradient=gradient,
    )


def pictures(progress: float, seed: int) -> torch.Tensor:
    """A coloured square per caption, noisier as training goes on."""
    images = torch.full((len(CAPTIONS), 3, 64, 64), 0.93)
    for k, color in enumerate(
        torch.tensor([[0.8, 0.2, 0.2], [0.2, 0.3, 0.8], [0.2, 0.6, 0.3], [0.7, 0.1, 0.1]])
    ):
        images[k, :, 16:44, 10 + 6 * k : 34 + 6 * k] = color[:, None, None]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + 0.15 * progress * noise).clamp(0, 1)


@pytest.fixture
def fake_run(tmp_path: Path) -> FakeRun:
    """Writes a run folder: `fake_run("guard", seed=1)`."""

    def make(objective: str, *, name: str | None = None, **options: Any) -> Path:
        folder = name or f"{objective}_seed{options.get('seed', 0)}"
        return write(tmp_path / "runs" / folder, objective, **options)

    return make


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A vanilla and a Guard run; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    return write(folder / "vanilla", "vanilla"), write(folder / "guard", "guard")


@pytest.fixture(scope="session")
def moving(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A vanilla and a Guard run whose window jumps over steps 3 and 4 and never reaches 7 and 8; not to be changed."""
    folder, windows = tmp_path_factory.mktemp("moving"), (range(2), range(1, 3), range(5, 7))
    vanilla, guard = (
        write(folder / name, name, iterations=6, windows=windows) for name in ("vanilla", "guard")
    )
    return vanilla, guard
