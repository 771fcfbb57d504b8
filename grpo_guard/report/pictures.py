"""Pictures on the page: pairs of the same prompt and noise, and the same noise along training."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image

from grpo_guard.report import curves
from grpo_guard.report.arms import Arm, ArmSet, seed_of
from grpo_guard.report.figures.samples import count_columns, cut_grid, shrink
from grpo_guard.report.notation import format_number
from grpo_guard.report.runs import Run, Samples
from grpo_guard.schema import record

PAIRS = 6
PAIR_PIXELS = 128
FRAME_PIXELS = 96  # of one picture of a grid
MOST_FRAMES = 60  # of all arms of a set together, because the page holds them
MOST_MARKS = 3
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for grids that are damaged or too large."""


@record
class Mark:
    """What a score says of a picture."""

    name: str
    """Name of the score."""
    value: str
    """The score; empty if it is 0 or 1."""
    verdict: str
    """ "right" if a gold is 1, "wrong" if it is 0, else empty."""


@record
class Picture:
    """A picture with what rewards saw in it."""

    label: str
    """Where it comes from."""
    source: str
    """The picture as a data URI."""
    marks: tuple[Mark, ...]
    """Its main scores."""
    notes: str
    """What rewards noted."""


@record
class Pair:
    """Two pictures of the same prompt and noise."""

    caption: str
    """The prompt."""
    pictures: tuple[Picture, ...]
    """The two pictures."""
    place: str
    """The seeds and iterations that they are from, such as "seed 2, iteration 200"."""


@record
class Frame:
    """The sample pictures of a run at one iteration."""

    iteration: int
    """The iteration."""
    source: str
    """The grid of pictures as a data URI."""


@record
class Film:
    """The sample pictures of a run along training, from the same noise."""

    arm: Arm
    """The arm."""
    seed: int
    """Seed of the run."""
    frames: tuple[Frame, ...]
    """The grids, by iteration."""
    captions: tuple[str, ...]
    """The prompts, in the order of a grid."""


@record
class Moment:
    """The sample pictures of a run at one iteration, cut apart."""

    run: Run
    """The run."""
    label: str
    """Where the pictures come from."""
    iteration: int
    """The iteration."""
    tiles: Sequence[Image.Image]
    """The pictures."""


def make_pairs(arm_set: ArmSet) -> tuple[Pair, ...]:
    """Return the first prompts as two arms draw them at the end; of one arm, before and after.

    The pair of arms is the reference and the next one, with their lowest common seed.
    """
    moments = _choose_moments(arm_set)
    if len(moments) < 2:
        return ()
    samples = moments[0].run.samples
    assert samples is not None
    return tuple(
        Pair(
            caption=caption,
            pictures=tuple(_make_picture(moment, index) for moment in moments),
            place=_describe_place(moments),
        )
        for index, caption in enumerate(samples.captions[:PAIRS])
    )


def _choose_moments(arm_set: ArmSet) -> list[Moment]:
    """Return the two moments that pairs show; fewer if they lack pictures of the same prompts."""
    arms = [arm for arm in arm_set.arms if any(run.samples for run in arm.runs)]
    if len(arms) > 1:
        for first, second in _runs_of_equal_seed(*arms[:2]):
            assert first.samples is not None
            assert second.samples is not None
            common = set(first.samples.grids) & set(second.samples.grids)
            if first.samples.captions == second.samples.captions and common:
                ends = [_cut(run, max(common), arm.label) for run, arm in
                        ((first, arms[0]), (second, arms[1]))]  # fmt: skip
                return [end for end in ends if end]
    if not arms:
        return []
    run = next(run for run in arms[0].runs if run.samples)
    assert run.samples is not None
    arm_name = f"{arms[0].label}, " if len(arm_set.arms) > 1 else ""
    cut = [
        _cut(run, time, arm_name + (f"iteration {time}" if time else "before training"))
        for time in sorted({min(run.samples.grids), max(run.samples.grids)})
    ]
    return [moment for moment in cut if moment]


def _describe_place(moments: Sequence[Moment]) -> str:
    """Write which seeds and iterations pictures are from."""
    seeds = _name_numbers("seed", [seed_of(moment.run) for moment in moments])
    return f"{seeds}, {_name_numbers('iteration', [moment.iteration for moment in moments])}"


def _name_numbers(noun: str, numbers: Sequence[int]) -> str:
    different = list(dict.fromkeys(map(str, numbers)))
    return f"{noun} {different[0]}" if len(different) == 1 else f"{noun}s {' and '.join(different)}"


def _runs_of_equal_seed(first: Arm, second: Arm) -> list[tuple[Run, Run]]:
    """Return pairs of runs with pictures, those of equal seed first."""
    pairs = [(a, b) for a in first.runs for b in second.runs if a.samples and b.samples]
    return sorted(pairs, key=lambda pair: seed_of(pair[0]) != seed_of(pair[1]))


def _cut(run: Run, iteration: int, label: str) -> Moment | None:
    """Cut a grid apart; None if the file is too large or damaged, as while it is written."""
    assert run.samples is not None
    try:
        tiles = cut_grid(run.samples.grids[iteration], len(run.samples.captions))
    except UNREADABLE:
        return None
    return Moment(run=run, label=label, iteration=iteration, tiles=tiles)


def _make_picture(moment: Moment, index: int) -> Picture:
    samples = moment.run.samples
    assert samples is not None
    notes = samples.notes.get(moment.iteration, ())
    return Picture(
        label=moment.label,
        source=encode(shrink(moment.tiles[index], PAIR_PIXELS)),
        marks=_list_marks(moment.run, samples, moment.iteration, index),
        notes=notes[index] if index < len(notes) else "",
    )


def _list_marks(run: Run, samples: Samples, iteration: int, index: int) -> tuple[Mark, ...]:
    """Return the first golds of a picture, and its proxy."""
    scores = samples.scores.get(iteration, ())
    if index >= len(scores):
        return ()
    golds = [f"eval/gold/{name}" for name in curves.gold_names([run])]
    proxies = [key for key in scores[index] if key.startswith("eval/proxy/")]
    keys = [key for key in golds if key in scores[index]][: MOST_MARKS - 1] + proxies
    return tuple(_make_mark(key, scores[index][key]) for key in keys[:MOST_MARKS])


def _make_mark(key: str, score: float) -> Mark:
    is_gold = key.startswith("eval/gold/")
    verdict = {0.0: "wrong", 1.0: "right"}.get(score, "") if is_gold else ""
    name = key.rpartition("/")[2]
    return Mark(name=name, value="" if verdict else format_number(score), verdict=verdict)


def make_films(arm_set: ArmSet) -> tuple[Film, ...]:
    """Return pictures of every arm along training: of one seed, if all arms have it."""
    runs = _choose_runs(arm_set.arms)
    count = max(2, min(12, MOST_FRAMES // max(1, len(runs))))
    films = [_make_film(arm, run, count) for arm, run in runs]
    return tuple(film for film in films if film.frames)


def _choose_runs(arms: Sequence[Arm]) -> list[tuple[Arm, Run]]:
    """Return a run of every arm that has pictures: their lowest common seed, or else the first."""
    every = [(arm, [run for run in arm.runs if run.samples]) for arm in arms]
    pictured = [(arm, runs) for arm, runs in every if runs]
    seeds = [{seed_of(run) for run in runs} for _, runs in pictured]
    common = set.intersection(*seeds) if seeds else set[int]()
    return [
        (arm, next((run for run in runs if seed_of(run) in common), runs[0]))
        for arm, runs in pictured
    ]


def _make_film(arm: Arm, run: Run, count: int) -> Film:
    samples = run.samples
    assert samples is not None
    times = sorted(samples.grids)
    chosen = {times[round(k * (len(times) - 1) / (count - 1))] for k in range(count)}
    frames = [_make_frame(samples, iteration) for iteration in sorted(chosen)]
    return Film(
        arm=arm,
        seed=seed_of(run),
        frames=tuple(frame for frame in frames if frame),
        captions=samples.captions,
    )


def _make_frame(samples: Samples, iteration: int) -> Frame | None:
    """Return a grid at the size of the page; None if the file is damaged or too large."""
    columns = count_columns(len(samples.captions))
    try:
        with Image.open(samples.grids[iteration]) as file:
            grid = shrink(file.convert("RGB"), FRAME_PIXELS * columns)
    except UNREADABLE:
        return None
    return Frame(iteration=iteration, source=encode(grid))


def encode(picture: Image.Image) -> str:
    """Return a picture as a data URI of a WebP file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
