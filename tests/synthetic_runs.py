"""Runs in memory with chosen numbers, for tests of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from grpo_guard.report.runs import Run

VARIANTS = {
    "vanilla": ("raw", "uniform"),
    "guard": ("norm", "inverse_dt"),
    "rationorm": ("norm", "uniform"),
}
STEPS = 4
SHIFTED, GROWING = (-1e-7, -1e-6, -2e-5, -3e-4), (1e-5, 5e-5, 2e-4, 8e-4)
CENTRED, MILD = (1e-8, -2e-8, 1e-8, -3e-8), (5e-5, 7e-5, 1e-4, 2e-4)
FALLING = tuple(np.linspace(0.8, 0.5, 8))
LEVEL = (0.8, 0.81, 0.79, 0.8, 0.81, 0.79, 0.8, 0.8)
RISING = tuple(np.linspace(0.4, 0.5, 8))

Numbers = Sequence[float]


def make_run(
    variant: str = "vanilla",
    *,
    raw: tuple[Numbers, Numbers] = (SHIFTED, GROWING),
    norm: tuple[Numbers, Numbers] = (CENTRED, MILD),
    high: Numbers = (0, 0, 0, 0.001),
    low: Numbers = (0, 0, 0.01, 0.3),
    share: Numbers = (0.02, 0.08, 0.3, 0.6),
    proxy: Numbers = RISING,
    golds: dict[str, Numbers] | None = None,
    **config: Any,
) -> Run:
    """Make a run of eight iterations that measured the same at each step in all of them."""
    per_step = {
        "ratio_raw/mean": raw[0],
        "ratio_raw/std": raw[1],
        "ratio_norm/mean": norm[0],
        "ratio_norm/std": norm[1],
        "clip/high_pos_adv": high,
        "clip/low_neg_adv": low,
        "grad_share": share,
    }
    steps = {
        f"{key}/{tt:02d}": float(value)
        for key, values in per_step.items()
        for tt, value in enumerate(values)
    }
    curves = {"eval/proxy/p": proxy}
    curves |= {f"eval/gold/{k}": v for k, v in (golds or {"facts": FALLING}).items()}
    rows = []
    for i in range(8):
        row = {"iteration": i, "images": 96.0 * (i + 1), "reward/total": 0.5, "reward/p": 0.5}
        evaluated = {key: float(values[i]) for key, values in curves.items() if i < len(values)}
        rows.append(row | steps | evaluated)
    ratio, weight = VARIANTS[variant]
    settings = {
        "clipping": {
            "name": variant,
            "_target_": "grpo_guard.clipping.clip.Clip",
            "ratio": {"_target_": f"x.log_ratio_{ratio}"},
            "weight": {"_target_": f"x.{weight}"},
        },
        "data": {"prompts": 12, "repeats": 16},
        "eval": {"prompts": 192},
        "seed": 0,
        "iterations": 8,
        "steps": 5,
        "updates": 2,
        "steps_per_sample": None,
    }
    return Run(
        folder=Path("made"),
        label=variant,
        config=settings | config,
        rows=tuple(rows),
        histograms=None,
        samples=None,
        prompt_scores={},
    )


def keep_windows(run: Run, *windows: range) -> Run:
    """Return the run as if its iterations had trained only the steps of these windows in turn."""
    rows = []
    for i, row in enumerate(run.rows):
        window = windows[i % len(windows)]
        rows.append(
            {
                key: value
                for key, value in row.items()
                if not key[-2:].isdigit() or int(key[-2:]) in window
            }
        )
    return replace(run, rows=tuple(rows))


WINDOWS = range(2), range(1, 3), range(2, 4), range(2, 4)
"""Windows of four iterations in turn; of eight, 2, 4, 6 and 4 train each of the four steps."""
