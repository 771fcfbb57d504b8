"""The report as one HTML file that needs nothing else, and its figures as PNG beside it."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from grpo_guard.report import curves, measure, samples
from grpo_guard.report.claims import Claim, claims
from grpo_guard.report.runs import Run, differences
from grpo_guard.report.summary import Section, summary
from grpo_guard.report.theme import CSS, RC, RUNS, variables
from grpo_guard.types import record, require

ABOUT = (
    "{count} fine-tuned with GRPO on a flow-matching text-to-image model. A <em>policy</em> samples images in {steps}"
    " denoising steps, a reward (the <em>proxy</em>) scores them, and clipped policy-gradient updates follow; a"
    " <em>gold</em> is a score that nothing is trained on. GRPO-Guard (arXiv 2510.22319) says that the importance ratio"
    " of the plain method (vanilla) is shifted and unequal over steps, so that its clip fails on one side and training"
    " over-optimises the proxy; it normalises the ratio and reweights the gradient. This page shows what these runs"
    " say of that. Steps are counted from noise (0); the last step of a rollout is never trained."
)

INTRO = (
    "Each claim is judged by a fixed rule on the numbers of these runs alone; a verdict says nothing of other models,"
    " rewards or settings. Ratios, clip fractions and gradient shares are averages over all iterations of a run, on the"
    " updates after an iteration's first (on that one every ratio is 1). The standard error of a ratio's mean is the"
    " larger of two: from the spread of its rows, and from the scatter between iterations. That of exact is binomial"
    " over the evaluation prompts, and at most that for facts; that of other scores is the scatter from one evaluation"
    " to the next, which does not see that other prompts might have said otherwise."
)


@record
class Plate:
    """A figure, how it is called, what to see in it, whether the runs hold what it needs, and how it is drawn."""

    name: str
    title: str
    text: str
    measured: object
    draw: Callable[[], Figure]


def write(runs: Sequence[Run], folder: Path) -> Path:
    """Write `index.html` and `figures/*.png` into a folder, return the page's path; ConfigError if that cannot be."""
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        html = page(runs, folder / "figures")
        (folder / "index.html").write_text(html, encoding="utf-8")
    except OSError as error:
        require(False, f"{folder} cannot be written ({os.strerror(error.errno or 0)}); choose another with --out")
    return folder / "index.html"


def page(runs: Sequence[Run], figures: Path) -> str:
    """The page of some runs, the first being the reference; its figures are also kept as PNG."""
    title = f"Runs compared: {'; '.join(run.label for run in runs)}" if len(runs) > 1 else f"Run: {runs[0].label}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{_about(runs)}</p>",
        *(f'<p class="note">{escape(note)}</p>' for note in _notes(runs)),
        '<nav aria-label="Sections"><a href="#summary">Summary</a><a href="#claims">Claims</a>',
        *(f'<a href="#{plate.name}">{escape(plate.title)}</a>' for plate in plates(runs)),
        "</nav>",
        '<h2 id="summary">Summary</h2>',
        _summary(runs, summary(runs)),
        _differences(runs),
        '<h2 id="claims">The claims of the paper</h2>',
        _judgement(claims(runs)),
        *(_plate(plate, figures) for plate in plates(runs)),
    ]
    return _document(title, "\n".join(body))


def plates(runs: Sequence[Run]) -> tuple[Plate, ...]:
    """Every figure of the report, in order."""
    ratios = any(measure.ratio(run, "raw") or measure.ratio(run, "norm") for run in runs)
    golds, proxies = measure.gold_names(runs), any(map(measure.proxy_name, runs))
    return (
        Plate(
            name="over_optimization",
            title="Over-optimisation",
            text="Each run from its start (hollow, iteration 0) to its end; numbers are iterations, bars one standard"
            " error. A run that moves right and then down gains proxy at the cost of gold; where two runs are at the"
            " same proxy, the higher one is better.",
            measured=golds and proxies,
            draw=partial(curves.over_optimization, runs),
        ),
        Plate(
            name="evaluations",
            title="Along the run",
            text="Reward on the training samples, then proxy and golds on the held-out prompts, always the same ones"
            " from the same noise. Bands are one standard error: binomial for exact and facts, else from the curve's"
            " own scatter.",
            measured=golds and proxies,
            draw=partial(curves.evaluations, runs),
        ),
        Plate(
            name="ratios",
            title="Ratios by step",
            text="Averages over all iterations, on the updates after an iteration's first (on that one every ratio is"
            " 1); bars are two standard errors. Both ratios come from the same forward passes: solid where the run"
            " optimises this ratio, dashed where it was only measured. Raw and normalised ratios have different units,"
            " so compare shapes, not heights; the bottom row has no units.",
            measured=ratios,
            draw=partial(curves.ratios, runs),
        ),
        Plate(
            name="histograms",
            title="Ratio histograms",
            text="Log-ratios of all iterations in units of the run's own clip range, a ridge per step, each to its own"
            " height. The band from -1 to 1 is the clip range, drawn where it acts; there the numbers are the shares of"
            " all rows below and above it, and the axis stops at 4 clip ranges. Elsewhere the unit only serves to"
            " compare steps.",
            measured=any(run.histograms for run in runs),
            draw=partial(curves.histograms, runs),
        ),
        Plate(
            name="clip_fractions",
            title="Clipped rows",
            text="Upwards: of the rows with A > 0, those above the clip range. Downwards: of the rows with A < 0, those"
            " below it. Only there does the clip hold the policy back; where it does so on both sides alike, up and"
            " down are mirror images.",
            measured=any(map(measure.clip, runs)),
            draw=partial(curves.clip_fractions, runs),
        ),
        Plate(
            name="gradient_shares",
            title="Gradient by step",
            text="Each step's share of the norm of the loss's gradient with respect to the velocity, averaged over all"
            " iterations.",
            measured=any(run.keys("grad_share/") for run in runs),
            draw=partial(curves.gradient_shares, runs),
        ),
        *_sample_plates(runs),
        Plate(
            name="statistics",
            title="Picture statistics",
            text="Plain measures of the held-out pictures, neither good nor bad: a drift here is a change of style that"
            " no gold asks for.",
            measured=measure.statistic_names(runs),
            draw=partial(curves.statistics, runs),
        ),
        Plate(
            name="times",
            title="Where the time went",
            text="Seconds per iteration, those of evaluations spread over all iterations.",
            measured=any(map(measure.seconds, runs)),
            draw=partial(curves.times, runs),
        ),
    )


def _sample_plates(runs: Sequence[Run]) -> list[Plate]:
    """A sheet for every set of runs with the same captions; one that is empty where there are no samples."""
    groups = samples.alike(runs) or [[]]
    return [
        Plate(
            name="samples" if k == 0 else f"samples_{k + 1}",
            title="Samples" if k == 0 else f"Samples ({k + 1})",
            text="The same held-out prompts from the same noise, before and after.",
            measured=group,
            draw=partial(samples.figure, group),
        )
        for k, group in enumerate(groups)
    ]


def _plate(plate: Plate, figures: Path) -> str:
    """A section with its figure, also written as PNG."""
    head = f'<h2 id="{plate.name}">{escape(plate.title)}</h2>'
    if not plate.measured:
        return f'{head}<p class="note">Not measured in these runs.</p>'
    figure, text = plate.draw(), escape(_typeset(plate.text))
    with rc_context(RC):
        figure.savefig(figures / f"{plate.name}.png", dpi=150)
    figure.set_layout_engine("none")
    drawing = _svg(figure, f"{plate.title}. {plate.text}")
    return f'{head}<figure><div class="scroll">{drawing}</div><figcaption>{text}</figcaption></figure>'


def _svg(figure: Figure, alt: str) -> str:
    """A figure as inline SVG whose colours are the page's variables."""
    buffer = io.StringIO()
    with rc_context(RC):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue()
    tag, rest = drawing[drawing.index("<svg") :].split(">", 1)
    box = re.search(r'viewBox="[^"]*"', tag)
    assert box is not None
    drawing = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.S)
    for color, name in variables().items():
        drawing = drawing.replace(color, f"var(--{name})")
    return f'<svg role="img" aria-label="{escape(_typeset(alt))}" {box[0]}>{drawing}'


def _about(runs: Sequence[Run]) -> str:
    count = "A run" if len(runs) == 1 else f"{len(runs)} runs"
    steps = sorted({run.setting("steps") for run in runs})
    return ABOUT.format(count=count, steps=" or ".join(map(str, steps)))


def _notes(runs: Sequence[Run]) -> list[str]:
    """What a reader should know about the state of the folders."""
    planned = {run: run.setting("iterations") for run in runs}
    running = [f"{r.label} ({r.iterations} of {n} iterations)" for r, n in planned.items() if r.iterations < n]
    torn = [f"{run.label} ({run.torn})" for run in runs if run.torn]
    notes = [f"Unfinished: {', '.join(running)}."] if running else []
    notes += [f"Lines of metrics.jsonl that could not be read and were left out: {', '.join(torn)}."] if torn else []
    return notes


def _summary(runs: Sequence[Run], sections: Sequence[Section]) -> str:
    rows = []
    for section in sections:
        rows.append(f'<tr class="group"><td colspan="{len(runs) + 1}">{escape(_typeset(section.title))}</td></tr>')
        rows += [_row([name, *values]) for name, values in section.rows]
    return f'<div class="scroll"><table>{_head(runs)}<tbody>{"".join(rows)}</tbody></table></div>'


def _differences(runs: Sequence[Run]) -> str:
    """The settings that tell the runs apart."""
    if len(runs) == 1:
        return ""
    rows = "".join(_row([key, *values]) for key, values in differences(runs).items())
    rows = rows or _row(["nothing that changes a result", *[""] * len(runs)])
    table = f'<table class="wrap">{_head(runs)}<tbody>{rows}</tbody></table>'
    return f'<h3>Settings that differ</h3><div class="scroll">{table}</div>'


def _head(runs: Sequence[Run]) -> str:
    keys = [f'<span class="key" style="background:var(--run-{i % len(RUNS)})"></span>' for i in range(len(runs))]
    cells = "".join(f'<th scope="col">{key}{escape(run.label)}</th>' for key, run in zip(keys, runs, strict=True))
    return f"<thead><tr><th></th>{cells}</tr></thead>"


def _row(cells: Sequence[str]) -> str:
    name, *values = (escape(_typeset(cell)) for cell in cells)
    return f'<tr><th scope="row">{name}</th>{"".join(f"<td>{value}</td>" for value in values)}</tr>'


def _judgement(found: Sequence[Claim]) -> str:
    return f'<p class="muted">{escape(INTRO)}</p><ol class="claims">{"".join(map(_claim, found))}</ol>'


def _claim(claim: Claim) -> str:
    texts = [finding.text for finding in claim.findings] or ["no such run among these"]
    evidence = "".join(f"<li>{escape(_typeset(line))}</li>" for text in texts for line in text.split("\n"))
    cautions = "".join(f'<p class="note">Caution: {escape(text)}</p>' for text in claim.cautions)
    return (
        f'<li><div class="verdict {claim.verdict.replace(" ", "-")}">{claim.verdict}</div><div>'
        f'<p class="claim">{escape(claim.title)}</p><ul>{evidence}</ul>{cautions}'
        f'<p class="note">Paper: {escape(_typeset(claim.paper))}. Rule: {escape(_typeset(claim.rule))}.</p></div></li>'
    )


def _typeset(text: str) -> str:
    """Arrows, minus and multiplication signs for what is typed in ASCII."""
    text = text.replace("->", "\N{RIGHTWARDS ARROW}")
    text = re.sub(r"(?<![\w.])-(?=[\d.])|(?<=e)-(?=\d)|(?<= )-(?= )", "\N{MINUS SIGN}", text)
    return re.sub(r"(?<=\d)x\b", "\N{MULTIPLICATION SIGN}", text)


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )
