"""The figures of a report: each a function of runs, noise to the left, one look per run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps

import numpy as np
from jaxtyping import Float, Int
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter
from numpy import ndarray

from grpo_guard.report import measure
from grpo_guard.report.measure import Curve, Kind
from grpo_guard.report.runs import Run
from grpo_guard.report.theme import BAND, INK, MUTED, RC, look

WIDTH = 10.5  # inches: a page's width at 100 dots per inch
REACH = 4.0  # clip ranges shown on either side where the clip acts
HALO = [withStroke(linewidth=2.5, foreground="#ffffff")]
STEP = "denoising step (0 is noise)"
NAMES: dict[Kind, str] = {"raw": "Raw ratio", "norm": "Normalised ratio"}

Draw = Callable[[Sequence[Run]], Figure]


def _styled(draw: Draw) -> Draw:
    @wraps(draw)
    def styled(runs: Sequence[Run]) -> Figure:
        with rc_context(RC):
            return draw(runs)

    return styled


@_styled
def over_optimization(runs: Sequence[Run]) -> Figure:
    """Every gold against the proxy along each run, hollow at the start; numbers are iterations."""
    golds = measure.gold_names(runs)
    figure, panels = _panels(len(golds), 2, 2.9)
    for name, axes in zip(golds, panels, strict=True):
        axes.set(title=f"{name} against proxy", xlabel="proxy", ylabel=f"gold: {name}")
        for i, run in enumerate(runs):
            _trace(
                axes,
                measure.proxy(run),
                measure.gold(run, name),
                i,
                labels=5 if len(runs) < 3 else 1,
            )
    _legend(figure, runs)
    return figure


def _trace(axes: Axes, proxy: Curve, gold: Curve, index: int, *, labels: int) -> None:
    at, x, y = np.intersect1d(proxy.iteration, gold.iteration, return_indices=True)
    if not len(at):
        return
    shown = look(index)
    px, py = proxy.value[x], gold.value[y]
    axes.errorbar(
        px,
        py,
        yerr=np.nan_to_num(gold.error[y]),
        elinewidth=1,
        linestyle="none",
        alpha=0.3,
        **shown,
    )
    axes.plot(px, py, linewidth=1.2, alpha=0.75, **shown)
    axes.plot(px[:1], py[:1], **shown | {"markerfacecolor": "#ffffff"}, markersize=7, zorder=3)
    axes.plot(px[-1:], py[-1:], **shown, markersize=7, zorder=3)
    for k in sorted({round(k) for k in np.linspace(len(at) - 1, 0, labels)}):
        above = 1 if index % 2 == 0 else -1
        axes.annotate(
            f"{at[k]}", (px[k], py[k]), (4, 5 * above), textcoords="offset points", fontsize=7.5, color=shown["color"],
            va="bottom" if above > 0 else "top",
        )  # fmt: skip


@_styled
def evaluations(runs: Sequence[Run]) -> Figure:
    """Training reward, proxy and golds against iteration, with bands of one standard error."""
    golds = measure.gold_names(runs)
    figure, panels = _panels(len(golds) + 2, 3, 2.4)
    for axes, name in zip(panels, ("reward", "proxy", *golds), strict=True):
        kind = {"reward": "training reward (on samples)", "proxy": "proxy (held-out prompts)"}
        axes.set(title=kind.get(name, f"gold: {name}"), xlabel="iteration")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for i, run in enumerate(runs):
        iteration, reward = run.series("reward/total")
        panels[0].plot(
            iteration, reward, linewidth=1, markevery=max(1, len(reward) // 8), **look(i)
        )
        for axes, curve in zip(
            panels[1:], [measure.proxy(run), *(measure.gold(run, g) for g in golds)], strict=True
        ):
            _banded(axes, curve, i)
    _legend(figure, runs)
    return figure


def _banded(axes: Axes, curve: Curve, index: int) -> None:
    error = np.nan_to_num(curve.error)
    axes.plot(curve.iteration, curve.value, **look(index))
    axes.fill_between(
        curve.iteration,
        curve.value - error,
        curve.value + error,
        color=look(index)["color"],
        alpha=0.15,
        linewidth=0,
    )


@_styled
def ratios(runs: Sequence[Run]) -> Figure:
    """Mean, spread and mean over spread of the raw and the normalised ratio per step; dashed where not optimised."""
    figure, panels = _panels(6, 2, 2.35)
    for column, kind in enumerate(NAMES):
        mean, std, shift = panels[column::2]
        for i, run in enumerate(runs):
            _ratio(run, kind, i - (len(runs) - 1) / 2, i, (mean, std, shift))
        mean.set(
            title=f"{NAMES[kind]}, mean \N{MINUS SIGN} 1: below 0 is a left shift",
            ylabel="mean \N{MINUS SIGN} 1",
        )
        std.set(
            title=f"{NAMES[kind]}, spread: flat is alike on all steps", ylabel="standard deviation"
        )
        shift.set(
            title=f"{NAMES[kind]}, mean over spread: 0 is centred",
            ylabel="standard deviations",
            xlabel=STEP,
        )
        _decades(std)
        _scaled(mean)
        for axes in (mean, shift):
            axes.axhline(0, color=INK[0], linewidth=0.8, zorder=1)
    _same_limits(panels[4:6])
    _steps(panels, runs)
    _legend(figure, runs)
    return figure


def _ratio(run: Run, kind: Kind, place: float, index: int, panels: tuple[Axes, Axes, Axes]) -> None:
    found = measure.ratio(run, kind)
    if found is None:
        return
    shown = look(index) | {"linestyle": "-" if run.ratio == kind else (0, (3, 2))}
    step, mean, error, std, shift = _gapped(
        found.step, found.mean, found.error, found.std, found.shift
    )
    x, bar = step + 0.06 * place, 2 * error
    panels[0].errorbar(x, mean, yerr=bar, elinewidth=1, **shown)
    panels[1].plot(x, std, **shown)
    panels[2].errorbar(x, shift, yerr=bar / np.maximum(std, 1e-30), elinewidth=1, **shown)


@_styled
def histograms(runs: Sequence[Run]) -> Figure:
    """Log-ratios in clip ranges, a ridge per step; the clip range is shaded where it acts."""
    columns = [
        (i, run, kind)
        for i, run in enumerate(runs)
        if run.histograms
        for kind in NAMES
        if _ridges(run, kind)
    ]
    steps = sorted({step for _, run, kind in columns for step in _ridges(run, kind)})
    figure, panels = _panels(len(columns), min(4, len(columns)), 0.42 * len(steps) + 1.1)
    for axes, (i, run, kind) in zip(panels, columns, strict=True):
        _ridgeline(axes, run, kind, i, steps)
    return figure


def _ridges(run: Run, kind: Kind) -> dict[int, Int[ndarray, " K"]]:
    """Counts over all iterations by step."""
    counts = run.histograms.counts if run.histograms else {}
    wanted = {
        int(key[-2:]): value.sum(0)
        for key, value in counts.items()
        if key.startswith(f"ratio_{kind}/hist/")
    }
    return {step: wanted[step] for step in sorted(wanted) if wanted[step].sum()}


def _ridgeline(axes: Axes, run: Run, kind: Kind, index: int, steps: Sequence[int]) -> None:
    assert run.histograms is not None
    ridges, edges, color = _ridges(run, kind), run.histograms.edges, look(index)["color"]
    acts = run.ratio == kind
    reach = max(quantile(np.abs(edges), counts, 0.985) for counts in ridges.values())
    reach = float(np.clip(reach, 1.6, REACH if acts else np.inf))
    for step, counts in ridges.items():
        place = steps.index(step)
        at, height = density(counts, edges)
        axes.fill_between(
            at,
            -place,
            1.2 * height - place,
            facecolor=color,
            alpha=0.28,
            linewidth=0,
            zorder=2 + place,
        )
        axes.plot(at, 1.2 * height - place, color=color, linewidth=1.1, zorder=2 + place)
        if acts:
            _beyond(axes, counts, edges, -float(place), reach)
    axes.set(
        title=f"{run.label}\n{NAMES[kind].lower()}{', optimised' if acts else ''}",
        xlim=(-reach, reach),
    )
    axes.set(xlabel="log-ratio in clip ranges", ylabel=STEP, ylim=(0.25 - len(steps), 1.4))
    axes.set_yticks(-np.arange(len(steps)), [f"{step}" for step in steps])
    axes.grid(axis="y", visible=False)
    if acts:
        axes.axvspan(-1, 1, color=BAND[0], zorder=0)


def _beyond(
    axes: Axes, counts: Int[ndarray, " K"], edges: Float[ndarray, " K1"], base: float, reach: float
) -> None:
    """Write the shares of the rows below and above the clip range at the ends of a base line."""
    before = np.append(0, counts.cumsum()) / counts.sum()
    low, high = np.interp(-1, edges, before), 1 - np.interp(1, edges, before)
    for share, x, side in ((low, -reach, "left"), (high, reach, "right")):
        text = f" {100 * share:.0f} % " if share >= 0.005 else ""
        axes.text(
            x,
            base + 0.06,
            text,
            ha=side,
            va="bottom",
            fontsize=7.5,
            color=INK[0],
            zorder=60,
            path_effects=HALO,
        )


def density(
    counts: Int[ndarray, " K"], edges: Float[ndarray, " K1"]
) -> tuple[Float[ndarray, " P"], Float[ndarray, " P"]]:
    """Log-ratios and rows per unit of them, 1 at its highest; the outer bins, being open, are left out.

    Neighbouring bins are joined into 6 to 24 of about equal counts: narrow ones would show their noise.
    """
    before = np.append(0, counts[1:-1].cumsum())
    filled, inner = np.nonzero(counts[1:-1])[0], edges[1:-1]
    if not len(filled):
        return inner, np.zeros(len(inner))
    groups = int(np.clip(np.sqrt(before[-1]) / 3, 6, 24))
    cuts = np.searchsorted(before, np.linspace(0, before[-1], groups + 1)[1:-1])
    cuts = np.unique([filled[0], *cuts, filled[-1] + 1])
    height = np.diff(before[cuts]) / np.diff(inner[cuts])
    at = [
        inner[0],
        inner[cuts[0]],
        *(inner[cuts[1:]] + inner[cuts[:-1]]) / 2,
        inner[cuts[-1]],
        inner[-1],
    ]
    return np.array(at), np.array([0, 0, *height / height.max(), 0, 0])


def quantile(values: Float[ndarray, " K1"], counts: Int[ndarray, " K"], share: float) -> float:
    """The value under which a share of the counts lies, of values known at the bins' edges."""
    middle = (values[1:] + values[:-1]) / 2
    order = np.argsort(middle)
    return float(np.interp(share * counts.sum(), counts[order].cumsum(), middle[order]))


@_styled
def clip_fractions(runs: Sequence[Run]) -> Figure:
    """How often the clip acts per step: upwards above the range with A > 0, downwards below it with A < 0."""
    found = [(i, run, clip) for i, run in enumerate(runs) if (clip := measure.clip(run))]
    figure, panels = _panels(len(found), min(4, max(2, len(found))), 2.7, shared=True)
    top = max(float(max(clip.high.max(), clip.low.max())) for _, _, clip in found) * 1.25 + 1e-6
    for axes, (i, run, clip) in zip(panels, found, strict=True):
        color = look(i)["color"]
        axes.bar(clip.step, clip.high, width=0.72, color=color)
        axes.bar(clip.step, -clip.low, width=0.72, color=color, alpha=0.55)
        axes.axhline(0, color=INK[0], linewidth=0.8)
        axes.set(
            title=run.label, xlabel=STEP, ylabel="share of such rows clipped", ylim=(-top, top)
        )
        axes.label_outer(remove_inner_ticks=False)
        axes.grid(axis="x", visible=False)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{abs(100 * y):.3g} %"))
        _corner(axes, "above, A > 0", 0.97, "top")
        _corner(axes, "below, A < 0", 0.03, "bottom")
    _steps(panels, runs)
    return figure


@_styled
def gradient_shares(runs: Sequence[Run]) -> Figure:
    """Each step's share of the gradient with respect to the velocity."""
    figure, panels = _panels(1, 1, 3.1)
    names = []
    for i, run in enumerate(runs):
        panels[0].plot(*_gapped(*measure.per_step(run, "grad_share")), **look(i))
        spread = measure.gradient_spread(run)
        names.append(f"{run.label}: largest / smallest {spread:.3g}" if spread > 0 else run.label)
    _even(panels[0], sorted({measure.window(run) for run in runs} - {0}))
    panels[0].set_title("Share of the gradient: dashed is the same for every step")
    panels[0].set(xlabel=STEP, ylabel="share of the gradient")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[0].set_ylim(bottom=0)
    _steps(panels, runs)
    _legend(figure, runs, names)
    return figure


def _even(axes: Axes, windows: Sequence[int]) -> None:
    """Dashed lines at the even share of so many steps, told apart where there are several."""
    for steps in windows:
        axes.axhline(1 / steps, color=MUTED[0], linewidth=1, linestyle=(0, (3, 2)))
        if len(windows) > 1:
            axes.annotate(
                f"of {steps} steps", (1, 1 / steps), (-4, 2), xycoords=axes.get_yaxis_transform(),
                textcoords="offset points", ha="right", va="bottom", fontsize=8, color=MUTED[0],
            )  # fmt: skip


@_styled
def statistics(runs: Sequence[Run]) -> Figure:
    """Plain measures of the pictures against iteration: marked those held out, in thin lines those of rollouts."""
    names = measure.statistic_names(runs)
    figure, panels = _panels(len(names), 3, 2.1)
    for axes, name in zip(panels, names, strict=True):
        axes.set(title=name.rpartition("/")[2].replace("_", " "), xlabel="iteration")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for i, run in enumerate(runs):
            axes.plot(
                *measure.smooth(*run.series(f"watch/{name}")),
                linewidth=1,
                color=look(i)["color"],
                alpha=0.6,
            )
            axes.plot(*run.series(f"eval/gold/{name}"), **look(i))
    _legend(figure, runs)
    return figure


@_styled
def times(runs: Sequence[Run]) -> Figure:
    """Seconds per iteration by part, evaluation spread over all iterations."""
    figure, panels = _panels(1, 1, 0.55 * len(runs) + 1.2)
    spent = [
        {part: s / max(run.iterations, 1) for part, s in measure.seconds(run).items()}
        for run in runs
    ]
    parts = sorted(
        {part for one in spent for part in one},
        key=lambda part: -sum(one.get(part, 0.0) for one in spent),
    )
    left = np.zeros(len(runs))
    for shade, part in zip(np.linspace(0.85, 0.2, len(parts)), parts, strict=True):
        width = np.array([one.get(part, 0.0) for one in spent])
        bars = panels[0].barh(
            range(len(runs)), width, left=left, height=0.62, color=MUTED[0], alpha=shade, label=part
        )
        texts = [f"{w:.3g} s" if w > 0.06 * max(map(_total, spent)) else "" for w in width]
        panels[0].bar_label(
            bars, texts, label_type="center", fontsize=8, color="#ffffff" if shade > 0.6 else INK[0]
        )
        left += width
    panels[0].set(
        xlabel="seconds per iteration",
        yticks=range(len(runs)),
        yticklabels=[run.label for run in runs],
    )
    panels[0].grid(axis="y", visible=False)
    panels[0].invert_yaxis()
    figure.legend(loc="outside upper left", ncols=len(parts))
    return figure


def _total(spent: dict[str, float]) -> float:
    return sum(spent.values(), 0.0)


def _panels(
    count: int, columns: int, height: float, *, shared: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of the page's width with so many panels, row by row, each so many inches high."""
    columns = min(columns, max(count, 1))
    rows = math.ceil(count / columns) or 1
    figure = Figure(figsize=(WIDTH, height * rows + 0.3), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared).flat)
    for spare in panels[count:]:
        spare.remove()
    return figure, panels[:count]


def _legend(figure: Figure, runs: Sequence[Run], names: Sequence[str] = ()) -> None:
    handles = [Line2D([], [], **look(i)) for i in range(len(runs))]
    names = names or [run.label for run in runs]
    ncols = min(len(runs), max(1, 130 // (max(map(len, names)) + 8)))
    figure.legend(handles, names, loc="outside upper left", ncols=ncols)


def _steps(panels: Sequence[Axes], runs: Sequence[Run]) -> None:
    """The same ticks on all panels: the steps that any run trained and those between, at most 15."""
    steps = _whole(np.unique(np.concatenate([measure.trained(run)[0] for run in runs])))
    every = max(1, math.ceil(len(steps) / 15))
    for axes in panels:
        axes.set_xticks(steps[::every])


def _whole(steps: Int[ndarray, " S"]) -> Int[ndarray, " W"]:
    """Every step from the first to the last of sorted ones."""
    return np.arange(steps[0], steps[-1] + 1) if len(steps) else steps


def _gapped(steps: Int[ndarray, " S"], *values: Float[ndarray, " S"]) -> tuple[ndarray, ...]:
    """Every step from the first to the last, and values that break a line where one was never trained."""
    whole = _whole(steps)
    found = np.full((len(values), len(whole)), np.nan)
    found[:, np.isin(whole, steps)] = values
    return whole, *found


def _scaled(axes: Axes) -> None:
    """Write the vertical axis in multiples of a power of ten that its label names."""
    reach = max(map(abs, axes.get_ylim()))
    power = math.floor(math.log10(reach)) if reach > 0 else 0
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda y, _: f"{y / 10**power:.3g}".replace("-", "\N{MINUS SIGN}"))
    )
    axes.set_ylabel(f"{axes.get_ylabel()}, in {_power(power)}")


def _decades(axes: Axes) -> None:
    """A logarithmic vertical axis of whole decades."""
    low, high = axes.dataLim.intervaly
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _power(round(math.log10(y)))))
    if 0 < low <= high < np.inf:
        axes.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))


def _power(power: int) -> str:
    """A power of ten, without the cost of typesetting mathematics."""
    return "10" + str(power).translate(
        str.maketrans(
            "-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
        )
    )


def _same_limits(panels: Sequence[Axes]) -> None:
    limits = [axes.get_ylim() for axes in panels]
    for axes in panels:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _corner(axes: Axes, text: str, height: float, side: str) -> None:
    axes.text(0.02, height, text, transform=axes.transAxes, va=side, fontsize=8, color=MUTED[0])
