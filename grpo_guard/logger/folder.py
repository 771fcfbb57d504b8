"""The run folder: metrics.jsonl, prompt_scores.jsonl, histograms.npz, and samples/."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.utils import save_image

from grpo_guard.histogram_files import load_histograms
from grpo_guard.logger import RunInfo, Sink, count_columns
from grpo_guard.metrics import Histogram, Metrics, finite_or_none
from grpo_guard.schema import ConfigError, PositiveInt, component
from grpo_guard.types import ImageScores, Pictures

PROMPT_SCORES = "prompt_scores.jsonl"
"""The file with one line per evaluation: the scores of all its prompts."""

_log = logging.getLogger(__name__)


class _Files:
    def __init__(self, folder: Path, flush_every: int) -> None:
        self.folder = folder
        self.flush_every = flush_every
        self.parts = folder / "histograms"
        self.parts.mkdir(exist_ok=True)

    def log(self, iteration: int, metrics: Metrics) -> None:
        scalars = {k: m.value for k, m in sorted(metrics.items()) if not isinstance(m, Histogram)}
        row = {"iteration": iteration} | {k: v for k, v in scalars.items() if math.isfinite(v)}
        self._write_part(iteration, {k: m for k, m in metrics.items() if isinstance(m, Histogram)})
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _write_part(self, iteration: int, histograms: dict[str, Histogram]) -> None:
        """Write the histograms of an iteration to a file of their own.

        Adding to a compressed archive means writing all of it again, which would cost more with
        every iteration.
        """
        if not histograms:
            return
        counts = {key: h.counts.numpy().astype(np.int32)[None] for key, h in histograms.items()}
        edges = next(iter(histograms.values())).edges.numpy()
        _save_arrays(
            self.parts / f"{iteration:06d}.npz",
            {"iteration": np.array([iteration]), "edges": edges, **counts},
        )
        if len(list(self.parts.iterdir())) >= self.flush_every:
            self.pack()

    def show(self, iteration: int, pictures: Pictures) -> None:
        self._write_prompt_scores(iteration, pictures.by_prompt)
        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        save_image(
            pictures.images,
            folder / f"{iteration:06d}.png",
            nrow=count_columns(len(pictures.images)),
            padding=2,
            pad_value=1,
        )
        # one line each, whatever a prompt holds that readers take for the end of a line
        captions = [" ".join(caption.splitlines()) for caption in pictures.captions]
        _replace_text(folder / "captions.txt", "\n".join(captions) + "\n")
        described = [
            _describe_picture(caption, scores)
            for caption, scores in zip(pictures.captions, pictures.scores, strict=True)
        ]
        text = json.dumps(described, indent=1, ensure_ascii=False, allow_nan=False)
        _replace_text(folder / f"{iteration:06d}.json", text + "\n")

    def _write_prompt_scores(
        self, iteration: int, by_prompt: Mapping[str, Sequence[float]]
    ) -> None:
        """Write the score of every prompt, so that intervals over prompts can be computed."""
        row = {key: [_round(value) for value in by_prompt[key]] for key in sorted(by_prompt)}
        with (self.folder / PROMPT_SCORES).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"iteration": iteration, **row}, allow_nan=False) + "\n")

    def pack(self) -> None:
        """Add the files of single iterations to histograms.npz.

        It holds iteration (N,), edges (K+1,), and counts (N, K) under each key. A step has only
        zeros at an iteration that did not train it.
        """
        packed = self.folder / "histograms.npz"
        parts = sorted(self.parts.glob("*.npz"))
        files = [file for file in (packed, *parts) if file.exists()]
        whole = [arrays for file in files if (arrays := _load_or_set_aside(file))]
        _save_arrays(packed, _merge_histograms(whole))
        for part in parts:
            part.unlink(missing_ok=True)

    def discard_from(self, start: int) -> None:
        """Discard the log of iteration `start` and later ones, and what is not whole."""
        for unfinished in self.parts.glob("*.tmp"):
            unfinished.unlink()
        scores = self.folder / PROMPT_SCORES
        if scores.exists():
            _discard_lines(scores, start)
        metrics = self.folder / "metrics.jsonl"
        if metrics.exists():
            logged = _discard_lines(metrics, start)
            # The first iteration of a run that began from a state of another one is not 0.
            if {*range(min(logged, default=0), start)} - logged:
                line = "%s lacks numbers of iterations before %d; the run goes on without them"
                _log.warning(line, metrics, start)
        self.pack()
        packed = self.folder / "histograms.npz"
        arrays = load_histograms(packed)
        rows = arrays["iteration"] < start
        _save_arrays(
            packed,
            {key: values if key == "edges" else values[rows] for key, values in arrays.items()},
        )


def read_rows(folder: Path, start: int, end: int) -> list[dict[str, float]]:
    """Return the numbers of the iterations from `start` up to `end` that a run folder has.

    Lines that are not whole are left out, as those that a killed run leaves. Raises ConfigError if
    there is a file of them that cannot be read.
    """
    file = folder / "metrics.jsonl"
    rows = [_parse_row(line) for line in _read_lines(file)]
    return [row for row in rows if row and start <= row["iteration"] < end]


def _discard_lines(file: Path, start: int) -> set[int]:
    """Discard the lines of iteration `start` and later ones, and what is not whole.

    Returns the iterations that stay.
    """
    rows = [(line, _parse_row(line)) for line in _read_lines(file)]
    kept = [(line, row["iteration"]) for line, row in rows if row and row["iteration"] < start]
    _replace_text(file, "".join(line for line, _ in kept))
    return {iteration for _, iteration in kept}


def _read_lines(file: Path) -> list[str]:
    """Return the lines of a file with their ends; nothing if there is no file.

    What is no text in them is replaced. Raises ConfigError if the file cannot be read.
    """
    if not file.exists():
        return []
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}); restore it") from error


def is_finished(folder: Path, iterations: int) -> bool:
    """Return whether a run of so many iterations has logged its last evaluation."""
    rows = read_rows(folder, iterations, sys.maxsize)
    return [row["iteration"] for row in rows] == [iterations]


def _parse_row(line: str) -> dict[str, Any]:
    """Return the row of a line; nothing if the line is not whole or has no number of iteration."""
    try:
        row: dict[str, Any] = dict(json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return {}
    whole = line.endswith("\n") and isinstance(row.get("iteration"), int)
    return row if whole else {}


def _describe_picture(caption: str, scores: ImageScores) -> dict[str, Any]:
    """Return the JSON of a picture; a score that is missing is null."""
    values = {key: finite_or_none(value) for key, value in scores.scores.items()}
    return {"prompt": caption, "scores": values, "notes": dict(scores.notes)}


def _round(value: float) -> float | None:
    """Return the value with the digits that float32 has, to keep the file small."""
    return finite_or_none(float(f"{value:.7g}"))


def _merge_histograms(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join the histograms of several files; of an iteration that occurs twice, the last is kept."""
    edges = next((part["edges"] for part in parts if len(part["edges"])), np.empty(0))
    zeros = np.zeros((1, max(len(edges) - 1, 0)), np.int32)
    places = {
        int(iteration): (part, row)
        for part in parts
        for row, iteration in enumerate(part["iteration"])
    }
    keys = sorted({key for part in parts for key in part} - {"iteration", "edges"})
    counts = {}
    for key in keys:
        rows = [part[key][row : row + 1] if key in part else zeros for part, row in places.values()]
        counts[key] = np.concatenate(rows)
    return {"iteration": np.array(list(places), dtype=int), "edges": edges, **counts}


def _load_or_set_aside(file: Path) -> dict[str, np.ndarray] | None:
    """Read histograms; return None if they are damaged, and rename their file with a warning."""
    try:
        return load_histograms(file)
    except ValueError as error:
        aside = file.with_suffix(".damaged")
        os.replace(file, aside)
        _log.warning(
            "%s cannot be read (%s); it is now %s, and the run goes on without these histograms",
            file,
            error,
            aside.name,
        )
        return None


def _save_arrays(file: Path, arrays: Mapping[str, Any]) -> None:
    """Write a new file and rename it: a run that is killed leaves the old or the new one."""
    temporary = file.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    os.replace(temporary, file)


def _replace_text(file: Path, text: str) -> None:
    """Write a new file and rename it, as `_save_arrays` does."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


@component
class Folder:
    """Write everything into the run folder."""

    flush_every: PositiveInt
    """Pack the histograms into histograms.npz every so many iterations, and at the end of a run."""

    @contextmanager
    def open(self, run: RunInfo) -> Iterator[Sink]:
        """Open a sink into the run folder, which must exist."""
        files = _Files(run.folder, self.flush_every)
        files.discard_from(run.start)
        try:
            yield files
        finally:
            files.pack()
            # a folder that is not empty must not hide why the run ends
            with suppress(OSError):
                files.parts.rmdir()
