"""The report's plates: what each is called, what to see in it, what it needs, and who draws it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from grpo_guard.report import curves, measure, samples
from grpo_guard.report.runs import Run
from grpo_guard.types import record


@record
class Plate:
    """A figure: how it is called, what to see in it, whether runs hold what it needs, and how it is drawn of them.

    `groups` parts the runs into those that share a sheet.
    """

    name: str
    title: str
    text: str
    measured: Callable[[Sequence[Run]], object]
    draw: Callable[[Sequence[Run]], Figure]
    groups: Callable[[Sequence[Run]], Sequence[Sequence[Run]]] = lambda runs: [runs]


@record
class Sheet:
    """A plate of the runs that share it, the `number`th of its kind."""

    plate: Plate
    runs: Sequence[Run]
    number: int

    @property
    def name(self) -> str:
        """What its section and its file are called."""
        return self.plate.name if self.number == 1 else f"{self.plate.name}_{self.number}"

    @property
    def title(self) -> str:
        """Its heading."""
        return self.plate.title if self.number == 1 else f"{self.plate.title} ({self.number})"

    def draw(self) -> Figure | None:
        """Its figure, or None where its runs lack what it needs."""
        return self.plate.draw(self.runs) if self.plate.measured(self.runs) else None


def sheets(runs: Sequence[Run]) -> tuple[Sheet, ...]:
    """Every sheet of the report, in order; a plate without runs has an empty one."""
    return tuple(
        Sheet(plate=plate, runs=group, number=number)
        for plate in PLATES
        for number, group in enumerate(plate.groups(runs) or [()], 1)
    )


def any_run(look: Callable[[Run], object]) -> Callable[[Sequence[Run]], bool]:
    """Whether any of the runs has what is looked for."""
    return lambda runs: any(map(look, runs))


def evaluated(runs: Sequence[Run]) -> bool:
    """Whether there are a proxy and a gold."""
    return bool(measure.gold_names(runs)) and any(map(measure.proxy_name, runs))


PLATES: tuple[Plate, ...] = (
    Plate(
        name="over_optimization",
        title="Over-optimisation",
        text="Each run from its start (hollow, iteration 0) to its end; numbers are iterations, bars one standard"
        " error. A run that moves right and then down gains proxy at the cost of gold; where two runs are at the same"
        " proxy, the higher one is better.",
        measured=evaluated,
        draw=curves.over_optimization,
    ),
    Plate(
        name="evaluations",
        title="Along the run",
        text="Reward on the training samples, then proxy and golds on the held-out prompts, always the same ones from"
        " the same noise. Bands are one standard error: binomial for exact and facts, else from the curve's own"
        " scatter.",
        measured=evaluated,
        draw=curves.evaluations,
    ),
    Plate(
        name="ratios",
        title="Ratios by step",
        text="Averages over all iterations, on the updates after an iteration's first (on that one every ratio is 1);"
        " bars are two standard errors. Both ratios come from the same forward passes: solid where the run optimises"
        " this ratio, dashed where it was only measured. Raw and normalised ratios have different units, so compare"
        " shapes, not heights; the bottom row has no units.",
        measured=any_run(lambda run: measure.ratio(run, "raw") or measure.ratio(run, "norm")),
        draw=curves.ratios,
    ),
    Plate(
        name="histograms",
        title="Ratio histograms",
        text="Log-ratios of all iterations in units of the run's own clip range, a ridge per step, each to its own"
        " height. The band from -1 to 1 is the clip range, drawn where it acts; there the numbers are the shares of all"
        " rows below and above it, and the axis stops at 4 clip ranges. Elsewhere the unit only serves to compare"
        " steps.",
        measured=any_run(lambda run: run.histograms),
        draw=curves.histograms,
    ),
    Plate(
        name="clip_fractions",
        title="Clipped rows",
        text="Upwards: of the rows with A > 0, those above the clip range. Downwards: of the rows with A < 0, those"
        " below it. Only there does the clip hold the policy back; where it does so on both sides alike, up and down"
        " are mirror images.",
        measured=any_run(measure.clip),
        draw=curves.clip_fractions,
    ),
    Plate(
        name="gradient_shares",
        title="Gradient by step",
        text="Each step's share of the norm of the loss's gradient with respect to the velocity, averaged over all"
        " iterations.",
        measured=any_run(lambda run: run.keys("grad_share/")),
        draw=curves.gradient_shares,
    ),
    Plate(
        name="samples",
        title="Samples",
        text="The same held-out prompts from the same noise, before and after.",
        measured=any_run(lambda run: run.samples),
        draw=samples.figure,
        groups=samples.alike,
    ),
    Plate(
        name="statistics",
        title="Picture statistics",
        text="Plain measures of the held-out pictures (marked) and of the training samples (thin lines, each point"
        " the mean over a sixth of the run), neither good nor bad: a drift here is a change of style that no"
        " gold asks for. Diversity is how unlike the samples of one prompt are, 1 less the cosine of their CLIP"
        " embeddings: where it falls, a policy collapses.",
        measured=measure.statistic_names,
        draw=curves.statistics,
    ),
    Plate(
        name="times",
        title="Where the time went",
        text="Seconds per iteration, those of evaluations spread over all iterations.",
        measured=any_run(measure.seconds),
        draw=curves.times,
    ),
)
"""The plates, in the order of the page."""
