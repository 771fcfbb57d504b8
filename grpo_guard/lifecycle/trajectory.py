"""Keeps what one iteration drew and used, so that its numbers can be computed again.

`scripts/verify_run.py` does that. Each process writes `trajectory/<iteration>_<rank>.safetensors`,
and the first one `trajectory/<iteration>.json` beside it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from grpo_guard import rng
from grpo_guard.clipping import Limits
from grpo_guard.lifecycle.scoring import ScoredSamples
from grpo_guard.parallel.ranks import Ranks
from grpo_guard.rollout import replay_steps
from grpo_guard.schema import record
from grpo_guard.tensor_files import write_like_python
from grpo_guard.types import Rows, Trajectory, Velocity, concatenate

FOLDER = "trajectory"
"""Folder of a run with the iteration that it kept."""

_log = logging.getLogger(__name__)


@runtime_checkable
class Keeper(Protocol):
    """Sees what an iteration uses, and keeps it if the settings say so."""

    def take(self, trajectory: Trajectory, rows: Rows, mean: Float[Tensor, "R ..."]) -> None:
        """Take the rows of a microbatch and their means under the present policy."""

    def finish(
        self, trajectory: Trajectory, scored: ScoredSamples, updates: Sequence[Rows], limits: Limits
    ) -> None:
        """End an iteration: `updates` are the rows of each update, in the order of `take`."""


@final
class KeepNothing:
    """Keeps nothing."""

    def take(self, trajectory: Trajectory, rows: Rows, mean: Float[Tensor, "R ..."]) -> None:
        """Ignore the rows."""

    def finish(
        self, trajectory: Trajectory, scored: ScoredSamples, updates: Sequence[Rows], limits: Limits
    ) -> None:
        """Write nothing."""


def open_keeper(
    iteration: int | None, folder: Path, ranks: Ranks, reference: Velocity | None
) -> Keeper:
    """Return a keeper of one iteration, or of none, for the run in `folder`.

    `reference` is the policy that a KL penalty compares with.
    """
    if iteration is None:
        return KeepNothing()
    return KeepIteration(iteration, folder, ranks, reference)


@record
class _Microbatch:
    """What is kept of the rows that were forwarded together."""

    mean: Float[Tensor, "R ..."]
    """Their means under the policy that was trained on them."""
    old_mean: Float[Tensor, "R ..."] | None
    """Their means under the old policy; None: those that the samples imply."""
    reference: Float[Tensor, "R ..."] | None
    """The reference's means; None: there is no KL penalty."""


@final
class KeepIteration:
    """Keeps one iteration. `reference` is the policy that a KL penalty compares with."""

    def __init__(
        self, iteration: int, folder: Path, ranks: Ranks, reference: Velocity | None
    ) -> None:
        self.iteration = iteration
        self.folder = folder / FOLDER
        self.ranks = ranks
        self.reference = reference
        self.taken: list[_Microbatch] = []

    def take(self, trajectory: Trajectory, rows: Rows, mean: Float[Tensor, "R ..."]) -> None:
        """Copy the means to the host's memory."""
        if trajectory.address[1] != self.iteration:
            return
        reference = None
        if self.reference is not None:
            with torch.no_grad():
                reference = replay_steps(self.reference, trajectory, rows).mean.cpu()
        old_mean = None if rows.old_mean is None else rows.old_mean.cpu()
        taken = _Microbatch(mean=mean.detach().cpu(), old_mean=old_mean, reference=reference)
        self.taken.append(taken)

    def finish(
        self, trajectory: Trajectory, scored: ScoredSamples, updates: Sequence[Rows], limits: Limits
    ) -> None:
        """Write the files; a disk that is full costs them, not the run."""
        if trajectory.address[1] != self.iteration:
            return
        sizes = [len(part.mean) for part in self.taken]
        taken = concatenate(self.taken)
        self.taken = []
        try:
            self.folder.mkdir(exist_ok=True)
            name = f"{self.iteration:06d}"
            tensors = {
                **_describe_rows(trajectory, updates, sizes),
                "x": trajectory.x,
                "sample": trajectory.batch.sample,
                "group": trajectory.batch.group,
                **{f"schedule/{key}": part for key, part in vars(trajectory.schedule).items()},
                "mean": taken.mean,
                "old_mean": _or_empty(taken.old_mean),
                "reference_mean": _or_empty(taken.reference),
            }
            whole = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
            file = self.folder / f"{name}_{self.ranks.rank}.safetensors"
            with write_like_python(file):
                save_file(whole, file)
            if self.ranks.is_first:
                text = json.dumps(self._describe(trajectory, scored, limits), indent=1)
                (self.folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            _log.warning("the trajectory of iteration %d was not kept (%s)", self.iteration, error)

    def _describe(
        self, trajectory: Trajectory, scored: ScoredSamples, limits: Limits
    ) -> dict[str, Any]:
        """Return what is the same on all processes, as JSON can hold it; NaN is null."""
        rewards = scored.rewards
        low, high = limits
        return {
            "seed": trajectory.address[0],
            "iteration": self.iteration,
            "processes": self.ranks.processes,
            "device": self.ranks.device.type,
            "prompts": [prompt.text for prompt in trajectory.batch.prompts],
            "limits": {"low": low.tolist(), "high": high.tolist()},
            "rewards": {
                "sample": scored.sample.tolist(),
                "group": scored.group.tolist(),
                "total": _list_numbers(rewards.total),
                "parts": {name: _list_numbers(part) for name, part in rewards.parts.items()},
                "weights": dict(rewards.weights),
                "failed": rewards.failed.tolist(),
            },
        }


def _describe_rows(
    trajectory: Trajectory, updates: Sequence[Rows], sizes: Sequence[int]
) -> dict[str, Tensor]:
    """Return one value for each training row, in the order of the updates."""
    rows = concatenate(updates)
    samples = trajectory.batch.sample[rows.sample]
    return {
        "row/sample": rows.sample,
        "row/step": rows.step,
        "row/advantage": rows.advantage,
        "row/update": _number_parts([len(part) for part in updates]),
        "row/microbatch": _number_parts(sizes),
        "noise": rng.noise(trajectory.address, samples, rows.step, trajectory.x.shape[2:]),
    }


def _number_parts(sizes: Sequence[int]) -> Tensor:
    """Return the number of the part that each row is in, for consecutive parts of these sizes."""
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def _or_empty(values: Tensor | None) -> Tensor:
    return torch.empty(0) if values is None else values


def _list_numbers(values: Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]
