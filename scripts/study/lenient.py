"""What a lenient proxy does to pictures: GenEval's accuracy does not punish what is too much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.typing import NDArray

from grpo_guard.report.arms import Arm
from grpo_guard.report.figures.plot import PNG_DPI
from grpo_guard.report.runs import Run
from grpo_guard.report.theme import MATPLOTLIB
from study.pictures import describe_faults

ARMS = {"vanilla_geneval": "vanilla", "guard_geneval": "Guard"}
"""Name of each arm that is trained on the lenient proxy, by the name of its folders."""
END = 200
"""Iteration of the last evaluation in the protocol."""


def describe_lenient(arms: Mapping[str, Arm]) -> Iterator[str]:
    """Return what is wrong with the pictures of these arms, as a table, once both are there."""
    if all(name in arms for name in ARMS):
        by_title = {title: arms[name] for name, title in ARMS.items()}
        yield from describe_faults(by_title, END, " of the arms with GenEval accuracy")


def draw_lenient(arms: Mapping[str, Arm], path: Path) -> None:
    """Write pictures of the first seed as PNG: before training, and after it in each arm.

    Nothing is written until both arms are there.
    """
    if not all(name in arms for name in ARMS):
        return
    runs = {title: arms[name].runs[0] for name, title in ARMS.items()}
    panels = {"before training": read_sheet(next(iter(runs.values())), 0)}
    panels |= {f"{title}, iteration {END}": read_sheet(run, END) for title, run in runs.items()}
    with rc_context(MATPLOTLIB):
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        places = figure.subplots(1, len(panels))
        for place, (title, sheet) in zip(places, panels.items(), strict=True):
            place.imshow(sheet)
            place.set_title(title)
            place.set_axis_off()
        figure.savefig(path, dpi=PNG_DPI)


def read_sheet(run: Run, iteration: int) -> NDArray[Any]:
    """Return the sheet of pictures that a run kept of an evaluation."""
    return imread(run.folder / "samples" / f"{iteration:06d}.png")
