"""Reads what a run kept of an iteration, and what it logged of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from grpo_guard.console import cli
from grpo_guard.schema import ConfigError, record, require

FOLDER = "trajectory"
"""Folder of a run with the iteration that it kept."""

_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading damaged notes and tensors raises, besides the error of safetensors."""

Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


@record
class Rewards:
    """The scores of all samples of an iteration, in the order of their numbers."""

    group: Integers
    """Group of each sample."""
    total: Numbers
    """What advantages are computed from; NaN for a sample that could not be scored."""
    parts: Mapping[str, Numbers]
    """Scores by name."""
    weights: Mapping[str, float]
    """Weights of the parts in the total."""
    failed: Booleans
    """True for a sample that could not be scored."""


@record
class Rows:
    """The training rows of all processes. R rows, latents of any shape."""

    sample: Integers
    """Number of the sample in the iteration."""
    step: Integers
    """Number of the denoising step."""
    update: Integers
    """Number of the update that was trained on the row."""
    microbatch: Integers
    """Number of the microbatch, of all processes."""
    rank: Integers
    """Process of the row."""
    advantage: Numbers
    """Advantage."""
    x: Numbers
    """Latents before the step, flattened: (R, D). So are all that follow."""
    x_next: Numbers
    """Latents after the step."""
    noise: Numbers
    """Noise of the step."""
    mean: Numbers
    """The step's mean under the policy that was trained on the row."""
    old_mean: Numbers | None
    """The old policy's mean; None: it follows from `x_next` and `noise`."""
    reference_mean: Numbers | None
    """The mean of the reference of the KL penalty; None: there is none."""


@record
class Kept:
    """One iteration: what it drew and used, what it logged, and the settings."""

    iteration: int
    """Its number."""
    seed: int
    """The run's seed."""
    device: str
    """Kind of device that drew the noise: "cpu", "cuda"."""
    shape: Sequence[int]
    """Shape of a latent."""
    start: Numbers
    """Latents at time 1, flattened, by number of the sample: (B, D)."""
    rewards: Rewards
    """The scores."""
    rows: Rows
    """The training rows."""
    schedule: Mapping[str, Numbers]
    """t, t_next, x_gain, v_gain, std and trained (0 or 1) of each step."""
    low: Numbers
    """Lower limit of the log-ratio at each step."""
    high: Numbers
    """Upper limit."""
    logged: Mapping[str, float]
    """The row of metrics.jsonl."""
    config: Mapping[str, Any]
    """The run's settings."""

    @property
    def dimensions(self) -> int:
        """Numbers in a latent."""
        return int(self.start.shape[1])


def read_kept(run: Path) -> list[Kept]:
    """Read every iteration that a run kept; raises ConfigError if that cannot be done."""
    files = sorted((run / FOLDER).glob("*.json"))
    require(
        bool(files),
        f"RUN={run} kept no trajectory; train with keep_trajectory=N, the number of an iteration",
    )
    config = cli.read_config(run / "config.yaml")
    return [_read_iteration(run, file, config) for file in files]


def _read_iteration(run: Path, file: Path, config: Mapping[str, Any]) -> Kept:
    try:
        notes = json.loads(file.read_text(encoding="utf-8"))
        names = [
            file.with_name(f"{file.stem}_{rank}.safetensors") for rank in range(notes["processes"])
        ]
        parts = [load_file(name) for name in names]
        return _assemble(notes, parts, _read_logged(run, notes["iteration"]), config)
    except (*_UNREADABLE, SafetensorError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{file} or its tensors cannot be used ({type(error).__name__}: {error});"
            " train with keep_trajectory again"
        ) from error


def _read_logged(run: Path, iteration: int) -> dict[str, float]:
    file = run / "metrics.jsonl"
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        row = _parse_row(line)
        if row.get("iteration") == iteration:
            return row
    raise ConfigError(f"{file} has no iteration {iteration}; let the run go on and finish it")


def _parse_row(line: str) -> dict[str, float]:
    """Return the numbers of a line; nothing if it is damaged."""
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return {}


def _assemble(
    notes: Mapping[str, Any],
    parts: Sequence[Mapping[str, Any]],
    logged: Mapping[str, float],
    config: Mapping[str, Any],
) -> Kept:
    """Join the rows of all processes; samples are put in the order of their numbers."""
    samples = np.concatenate([part["sample"] for part in parts])
    paths = np.concatenate([part["x"] for part in parts])
    prefix = "schedule/"
    schedule = {
        key.removeprefix(prefix): part.astype(np.float64)
        for key, part in parts[0].items()
        if key.startswith(prefix)
    }
    return Kept(
        iteration=notes["iteration"],
        seed=notes["seed"],
        device=notes["device"],
        shape=paths.shape[2:],
        start=_flatten(paths[np.argsort(samples), 0]),
        rewards=_read_rewards(notes["rewards"]),
        rows=_join([_read_rows(part, rank) for rank, part in enumerate(parts)]),
        schedule=schedule,
        low=np.array(notes["limits"]["low"]),
        high=np.array(notes["limits"]["high"]),
        logged=logged,
        config=config,
    )


def _read_rewards(notes: Mapping[str, Any]) -> Rewards:
    order = np.argsort(notes["sample"])
    return Rewards(
        group=np.array(notes["group"])[order],
        total=np.array(notes["total"], dtype=np.float64)[order],
        parts={k: np.array(part, dtype=np.float64)[order] for k, part in notes["parts"].items()},
        weights=notes["weights"],
        failed=np.array(notes["failed"], dtype=bool)[order],
    )


def _read_rows(part: Mapping[str, Any], rank: int) -> Rows:
    own = part["row/sample"]
    step = part["row/step"]
    optional = {key: _flatten(part[key]) if part[key].size else None for key in _OPTIONAL}
    return Rows(
        sample=part["sample"][own],
        step=step,
        update=part["row/update"],
        microbatch=part["row/microbatch"],
        rank=np.full_like(step, rank),
        advantage=part["row/advantage"].astype(np.float64),
        x=_flatten(part["x"][own, step]),
        x_next=_flatten(part["x"][own, step + 1]),
        noise=_flatten(part["noise"]),
        mean=_flatten(part["mean"]),
        **optional,
    )


_OPTIONAL = ("old_mean", "reference_mean")


def _join(parts: Sequence[Rows]) -> Rows:
    """Join the rows of all processes; their microbatches keep numbers of their own."""
    fields: dict[str, Any] = {}
    for name in vars(parts[0]):
        values = [getattr(part, name) for part in parts]
        fields[name] = None if values[0] is None else np.concatenate(values)
    first = np.cumsum([0, *(part.microbatch.max(initial=-1) + 1 for part in parts[:-1])])
    fields["microbatch"] = fields["microbatch"] + first[fields["rank"]]
    return Rows(**fields)


def _flatten(values: NDArray[Any]) -> Numbers:
    return values.reshape(len(values), -1).astype(np.float64)
