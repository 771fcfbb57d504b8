"""The run folder: metrics.jsonl, histograms.npz, samples/."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torchvision.utils import save_image

from grpo_guard.logger import Run, Sink
from grpo_guard.metrics import Histogram, Metrics
from grpo_guard.types import component, require


class _Files:
    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.counts: dict[int, dict[str, np.ndarray]] = {}
        self.edges = np.empty(0)

    def log(self, iteration: int, metrics: Metrics) -> None:
        scalars = {k: m.value for k, m in sorted(metrics.items()) if not isinstance(m, Histogram)}
        row = {"iteration": iteration} | {k: v for k, v in scalars.items() if not math.isnan(v)}
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._keep(iteration, {k: m for k, m in metrics.items() if isinstance(m, Histogram)})

    def _keep(self, iteration: int, histograms: dict[str, Histogram]) -> None:
        if histograms:
            self.counts[iteration] = {key: h.counts.numpy().astype(np.int32) for key, h in histograms.items()}
            self.edges = next(iter(histograms.values())).edges.numpy()
            if len(self.counts) % self.every == 0:
                self.flush()

    def show(self, iteration: int, images: Float[Tensor, "N 3 H W"], captions: Sequence[str]) -> None:
        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        save_image(
            images, folder / f"{iteration:06d}.png", nrow=math.ceil(math.sqrt(len(images))), padding=2, pad_value=1
        )
        (folder / "captions.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")

    def flush(self) -> None:
        """Write the histograms beside the old ones, then rename: iteration (N,), edges (K+1,), one (N, K) per key.

        A step that an iteration did not train has only zeros there.
        """
        none = np.zeros(max(len(self.edges) - 1, 0), np.int32)
        keys = sorted({key for counts in self.counts.values() for key in counts})
        found: dict[str, Any] = {k: np.stack([c.get(k, none) for c in self.counts.values()]) for k in keys}
        with (self.folder / "histograms.tmp").open("wb") as file:
            np.savez_compressed(file, iteration=np.array(list(self.counts)), edges=self.edges, **found)
        os.replace(self.folder / "histograms.tmp", self.folder / "histograms.npz")


@component
class Folder:
    """Keeps everything in the run folder; histograms are rewritten every `flush_every` iterations and at the end."""

    flush_every: int

    def __post_init__(self) -> None:
        require(self.flush_every > 0, f"flush_every={self.flush_every} is not positive")

    @contextmanager
    def open(self, run: Run) -> Iterator[Sink]:
        """A sink into an existing folder."""
        files = _Files(run.folder, self.flush_every)
        try:
            yield files
        finally:
            files.flush()
