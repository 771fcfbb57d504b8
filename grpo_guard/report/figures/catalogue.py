"""The catalogue of figures: what each shows, what it needs, and which function draws it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from grpo_guard.report import curves, per_step
from grpo_guard.report.figures.clip_fractions import draw_clip_fractions
from grpo_guard.report.figures.evaluations import draw_evaluations
from grpo_guard.report.figures.gradient_shares import draw_gradient_shares
from grpo_guard.report.figures.histograms import draw_histograms
from grpo_guard.report.figures.over_optimization import draw_over_optimization
from grpo_guard.report.figures.panels import DrawFigure
from grpo_guard.report.figures.ratios import draw_ratios
from grpo_guard.report.figures.samples import draw_samples, group_by_captions
from grpo_guard.report.figures.statistics import draw_statistics
from grpo_guard.report.figures.times import draw_times
from grpo_guard.report.runs import Run
from grpo_guard.schema import record


@record
class FigureKind:
    """A figure of the page, for any runs."""

    name: str
    """Name of its PNG file and of its section."""
    title: str
    """Heading of its section."""
    text: str
    """Caption."""
    is_measured: Callable[[Sequence[Run]], object]
    """Whether the runs hold what the figure needs."""
    draw: DrawFigure
    """Draws it."""
    groups: Callable[[Sequence[Run]], Sequence[Sequence[Run]]] = lambda runs: [runs]
    """Splits the runs into groups that each get a figure of their own."""


@record
class PageFigure:
    """A figure of certain runs."""

    kind: FigureKind
    """The kind of figure."""
    runs: Sequence[Run]
    """The runs in it."""
    number: int
    """Its number, from 1, among the figures of this kind."""

    @property
    def name(self) -> str:
        """Name of its PNG file and of its section."""
        return self.kind.name if self.number == 1 else f"{self.kind.name}_{self.number}"

    @property
    def title(self) -> str:
        """Heading of its section."""
        return self.kind.title if self.number == 1 else f"{self.kind.title} ({self.number})"

    def draw(self) -> Figure | None:
        """Draw it; None if its runs lack what it needs."""
        return self.kind.draw(self.runs) if self.kind.is_measured(self.runs) else None


def list_figures(runs: Sequence[Run]) -> tuple[PageFigure, ...]:
    """Return every figure of the page, in order; a kind without runs has one without runs."""
    return tuple(
        PageFigure(kind=kind, runs=group, number=number)
        for kind in KINDS
        for number, group in enumerate(kind.groups(runs) or [()], 1)
    )


def any_run(measured: Callable[[Run], object]) -> Callable[[Sequence[Run]], bool]:
    """Return a function that tests whether any of the runs has measured something."""
    return lambda runs: any(map(measured, runs))


def have_proxy_and_gold(runs: Sequence[Run]) -> bool:
    """Whether a proxy and a gold were evaluated."""
    return bool(curves.gold_names(runs)) and any(map(curves.proxy_name, runs))


def has_ratios(run: Run) -> bool:
    """Whether the raw or the normalised ratio was measured."""
    return any(per_step.ratio_statistics(run, kind) is not None for kind in ("raw", "norm"))


KINDS: tuple[FigureKind, ...] = (
    FigureKind(
        name="over_optimization",
        title="Over-optimisation",
        text="Each run from its start (hollow, iteration 0) to its end. Numbers are iterations, and"
        " bars are one standard error. A run that moves right and then down gains proxy at the cost"
        " of gold. Where two runs have the same proxy, the higher one is better.",
        is_measured=have_proxy_and_gold,
        draw=draw_over_optimization,
    ),
    FigureKind(
        name="evaluations",
        title="Along the run",
        text="Reward on the training samples, then proxy and golds on the held-out prompts, which"
        " are always the same and drawn from the same noise. Bands are one standard error: binomial"
        " for exact and facts, else from the curve's own scatter.",
        is_measured=have_proxy_and_gold,
        draw=draw_evaluations,
    ),
    FigureKind(
        name="ratios",
        title="Ratios by step",
        text="Averages over all iterations. The first update of each iteration is left out, because"
        " every ratio is 1 there. Bars are two standard errors. Both ratios come from the same"
        " forward passes: a line is solid if the run optimises this ratio, and dashed if it only"
        " measured it. Raw and normalised ratios have different units, so compare shapes, not"
        " heights; the bottom row has no units.",
        is_measured=any_run(has_ratios),
        draw=draw_ratios,
    ),
    FigureKind(
        name="histograms",
        title="Ratio histograms",
        text="Log-ratios of all iterations in units of the run's own clip range, a ridge per step,"
        " each scaled to its own height. The band from -1 to 1 is the clip range; it is drawn for"
        " the ratio that the run optimises. The numbers there are the shares of all rows below and"
        " above it, and the axis stops at 4 clip ranges. For the other ratio the unit only serves"
        " to compare steps.",
        is_measured=any_run(lambda run: run.histograms),
        draw=draw_histograms,
    ),
    FigureKind(
        name="clip_fractions",
        title="Clipped rows",
        text="Upwards: of the rows with A > 0, the share above the clip range. Downwards: of the"
        " rows with A < 0, the share below it. Only there does the clip hold the policy back. If it"
        " acts on both sides alike, up and down are mirror images.",
        is_measured=any_run(per_step.clipped_shares),
        draw=draw_clip_fractions,
    ),
    FigureKind(
        name="gradient_shares",
        title="Gradient by step",
        text="Each step's share of the norm of the loss's gradient with respect to the velocity,"
        " averaged over all iterations.",
        is_measured=any_run(lambda run: run.keys("grad_share/")),
        draw=draw_gradient_shares,
    ),
    FigureKind(
        name="samples",
        title="Samples",
        text="The same held-out prompts from the same noise, before and after training.",
        is_measured=any_run(lambda run: run.samples),
        draw=draw_samples,
        groups=group_by_captions,
    ),
    FigureKind(
        name="statistics",
        title="Picture statistics",
        text="Plain measures of the held-out pictures (markers) and of the training samples (thin"
        " lines; each point is the mean over a sixth of the run). They are neither good nor bad: a"
        " drift here is a change of style that no gold asks for. Diversity is how unlike the"
        " samples of one prompt are, 1 minus the cosine of their CLIP embeddings; it falls when a"
        " policy collapses.",
        is_measured=curves.statistic_names,
        draw=draw_statistics,
    ),
    FigureKind(
        name="times",
        title="Where the time went",
        text="Seconds per iteration; the time of evaluations is spread over all iterations.",
        is_measured=any_run(lambda run: run.seconds()),
        draw=draw_times,
    ),
)
"""The figures in the order of the page."""
