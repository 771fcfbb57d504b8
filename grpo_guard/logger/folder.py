"""The run folder: metrics.jsonl, histograms.npz, samples/ with what was seen in each picture."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torchvision.utils import save_image

from grpo_guard.logger import Run, Sink
from grpo_guard.metrics import Histogram, Metrics
from grpo_guard.types import Verdict, component, require


class _Files:
    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.parts = folder / "histograms"
        self.parts.mkdir(exist_ok=True)

    def log(self, iteration: int, metrics: Metrics) -> None:
        scalars = {k: m.value for k, m in sorted(metrics.items()) if not isinstance(m, Histogram)}
        row = {"iteration": iteration} | {k: v for k, v in scalars.items() if not math.isnan(v)}
        self._keep(iteration, {k: m for k, m in metrics.items() if isinstance(m, Histogram)})
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _keep(self, iteration: int, histograms: dict[str, Histogram]) -> None:
        """Every iteration is a file of its own until there are enough of them to be packed together."""
        if histograms:
            counts = {key: h.counts.numpy().astype(np.int32)[None] for key, h in histograms.items()}
            edges = next(iter(histograms.values())).edges.numpy()
            _write(
                self.parts / f"{iteration:06d}.npz",
                {"iteration": np.array([iteration]), "edges": edges, **counts},
            )
            if len(list(self.parts.iterdir())) >= self.every:
                self.pack()

    def show(
        self,
        iteration: int,
        images: Float[Tensor, "N 3 H W"],
        captions: Sequence[str],
        verdicts: Sequence[Verdict],
    ) -> None:
        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        save_image(
            images,
            folder / f"{iteration:06d}.png",
            nrow=math.ceil(math.sqrt(len(images))),
            padding=2,
            pad_value=1,
        )
        (folder / "captions.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
        told = [
            _told(caption, verdict) for caption, verdict in zip(captions, verdicts, strict=True)
        ]
        text, file = (
            json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False),
            folder / f"{iteration:06d}.json",
        )
        file.with_suffix(".tmp").write_text(text + "\n", encoding="utf-8")
        os.replace(file.with_suffix(".tmp"), file)

    def pack(self) -> None:
        """Add the iterations' files to histograms.npz: iteration (N,), edges (K+1,), one (N, K) per key.

        A step that an iteration did not train has only zeros there.
        """
        packed, parts = self.folder / "histograms.npz", sorted(self.parts.glob("*.npz"))
        found = _joined([_read(file) for file in [packed, *parts] if file.exists()])
        _write(packed, found)
        for part in parts:
            part.unlink()

    def forget(self, start: int) -> None:
        """Drop what was logged of iteration `start` and later ones, and a line that was torn."""
        file, packed = self.folder / "metrics.jsonl", self.folder / "histograms.npz"
        if file.exists():
            lines = [
                line
                for line in file.read_text(encoding="utf-8").splitlines(True)
                if _before(line, start)
            ]
            file.with_suffix(".tmp").write_text("".join(lines), encoding="utf-8")
            os.replace(file.with_suffix(".tmp"), file)
        self.pack()
        found = _read(packed)
        rows = found["iteration"] < start
        _write(
            packed,
            {key: values if key == "edges" else values[rows] for key, values in found.items()},
        )


def _before(line: str, start: int) -> bool:
    """Whether a line is whole and of an iteration before `start`."""
    try:
        return line.endswith("\n") and json.loads(line)["iteration"] < start
    except ValueError:
        return False


def _told(caption: str, verdict: Verdict) -> dict[str, Any]:
    """A picture for JSON; null is a score that could not be had."""
    scores = {key: value if math.isfinite(value) else None for key, value in verdict.scores.items()}
    return {"prompt": caption, "scores": scores, "notes": dict(verdict.notes)}


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Histograms of several files, each iteration once."""
    edges = next((part["edges"] for part in parts if len(part["edges"])), np.empty(0))
    none = np.zeros((1, max(len(edges) - 1, 0)), np.int32)
    rows = {int(n): (part, i) for part in parts for i, n in enumerate(part["iteration"])}
    keys = sorted({key for part in parts for key in part} - {"iteration", "edges"})
    picked = {
        key: np.concatenate(
            [part[key][i : i + 1] if key in part else none for part, i in rows.values()]
        )
        for key in keys
    }
    return {"iteration": np.array(list(rows), dtype=int), "edges": edges, **picked}


def _read(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as found:
        return dict(found)


def _write(file: Path, arrays: Mapping[str, Any]) -> None:
    """Beside its place first, then renamed."""
    with file.with_suffix(".tmp").open("wb") as opened:
        np.savez_compressed(opened, **arrays)
    os.replace(file.with_suffix(".tmp"), file)


@component
class Folder:
    """Keeps everything in the run folder; histograms are packed every `flush_every` iterations and at the end."""

    flush_every: int

    def __post_init__(self) -> None:
        require(self.flush_every > 0, f"flush_every={self.flush_every} is not positive")

    @contextmanager
    def open(self, run: Run) -> Iterator[Sink]:
        """A sink into an existing folder."""
        files = _Files(run.folder, self.flush_every)
        files.forget(run.start)
        try:
            yield files
        finally:
            files.pack()
            files.parts.rmdir()
