"""TensorBoard's files, as a view of the run folder."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torchvision.utils import make_grid

from grpo_guard.logger import RunInfo, Sink, count_columns
from grpo_guard.logger._views import AXIS, draw_ridgelines, spread_uniformly
from grpo_guard.metrics import Histogram, Metrics
from grpo_guard.schema import PositiveInt, component, require
from grpo_guard.types import Pictures


class _Writer:
    def __init__(self, writer: Any) -> None:
        self.writer = writer
        self.histograms: dict[str, Histogram] = {}

    def log(self, iteration: int, metrics: Metrics) -> None:
        drawn = {key: m for key, m in metrics.items() if isinstance(m, Histogram)}
        self.histograms = drawn or self.histograms
        for key, metric in metrics.items():
            if key not in drawn and not math.isnan(metric.value):
                self.writer.add_scalar(key, metric.value, iteration)
        for key, histogram in drawn.items():
            self._add_histogram(key, histogram, iteration)
        if self.histograms and any(key.startswith("eval/") for key in metrics):
            picture = draw_ridgelines(self.histograms)
            self.writer.add_image("ratios", picture, iteration, dataformats="HWC")

    def show(self, iteration: int, pictures: Pictures) -> None:
        images = pictures.images.cpu().clamp(0, 1)
        grid = make_grid(images, nrow=count_columns(len(images)), padding=2, pad_value=1)
        self.writer.add_image("samples", grid, iteration)
        self.writer.add_text("captions", "\n".join(f"1. {c}" for c in pictures.captions), iteration)

    def _add_histogram(self, key: str, histogram: Histogram, iteration: int) -> None:
        """Write counts on the common axis; sums are those of the middles of the bins."""
        counts = spread_uniformly(histogram)
        middle = (AXIS[1:] + AXIS[:-1]) / 2
        self.writer.add_histogram_raw(
            key, float(AXIS[0]), float(AXIS[-1]), float(counts.sum()),
            float((counts * middle).sum()), float((counts * np.square(middle)).sum()),
            AXIS[1:].tolist(), counts.tolist(), iteration,
        )  # fmt: skip


@component
class TensorBoard:
    """Write TensorBoard's files into the run folder: `tensorboard --logdir runs` shows them."""

    flush_seconds: PositiveInt
    """Seconds between two writes to disk."""

    def __post_init__(self) -> None:
        require(
            importlib.util.find_spec("tensorboard") is not None,
            "logger=tensorboard needs the package tensorboard;"
            " install it with pip install 'grpo_guard[tensorboard]'",
        )

    @contextmanager
    def open(self, run: RunInfo) -> Iterator[Sink]:
        """Open files in tensorboard/; of a resumed run, what is logged again is shown once."""
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(
            str(run.folder / "tensorboard"),
            purge_step=run.start,
            flush_secs=self.flush_seconds,
        )
        try:
            yield _Writer(writer)
        finally:
            writer.close()
