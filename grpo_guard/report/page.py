"""The report as one HTML file that needs no other file, and its figures as PNG beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from matplotlib import rc_context

from grpo_guard.report import per_step
from grpo_guard.report.claims import Claim, judge_claims
from grpo_guard.report.figures.catalogue import PageFigure, list_figures
from grpo_guard.report.markup import html_document, html_row, to_svg
from grpo_guard.report.notation import format_range, typeset
from grpo_guard.report.runs import Run
from grpo_guard.report.settings import differing_settings
from grpo_guard.report.summary import TableSection, summarise
from grpo_guard.report.theme import MATPLOTLIB, RUN_COLORS
from grpo_guard.schema import ConfigError

ABOUT = (
    "{count} fine-tuned with GRPO on a flow-matching text-to-image model. In every iteration the"
    " <em>policy</em> samples images in {steps} denoising steps, a reward (the <em>proxy</em>)"
    " scores them, and clipped policy-gradient updates follow. A <em>gold</em> is a score that"
    " nothing is trained on. GRPO-Guard (arXiv 2510.22319) claims that the importance ratio of the"
    " plain method (vanilla) is shifted and has a different spread at every step, so that its clip"
    " fails on one side and training over-optimises the proxy. Guard normalises the ratio and"
    " reweights the gradient. This page tests these claims on the runs. Steps are counted from"
    " noise (0); the last step of a rollout is never trained."
)

RULES_NOTE = (
    "Each claim is judged by a fixed rule on the numbers of these runs alone; the verdict does not"
    " extend to other models, rewards or settings. Ratios, clip fractions and gradient shares are"
    " averages over all iterations of a run. They leave out the first update of each iteration,"
    " because every ratio is 1 there. The standard error of a ratio's mean is the larger of two:"
    " from the spread of its rows, and from the scatter between iterations. The standard error of"
    " exact is binomial over the evaluation prompts; for facts this is an upper bound. For other"
    " scores it is the scatter from one evaluation to the next, which leaves out that other prompts"
    " might give other scores."
)

CHANGING_STEPS = (
    "Not every iteration trained the same steps: {runs}. The numbers of a step are averages over"
    " the iterations that trained it, and a gap in a line is a step that was never trained. A"
    " step's share of the gradient is its share among the steps that were trained with it. Compare"
    " it with the dashed line, an even share, but not with steps of other iterations."
)


def write_page(runs: Sequence[Run], folder: Path) -> Path:
    """Write `index.html` and `figures/*.png` into a folder, and return the path of the page.

    The first run is the reference. Raises ConfigError if the folder cannot be written.
    """
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        html = compose_page(runs, folder / "figures")
        (folder / "index.html").write_text(html, encoding="utf-8")
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(
            f"{folder} cannot be written ({reason}); choose another with --out"
        ) from error
    return folder / "index.html"


def compose_page(runs: Sequence[Run], figures: Path) -> str:
    """Return the page as HTML, and write its figures as PNG into the folder `figures`."""
    page_figures = list_figures(runs)
    title = f"Run: {runs[0].label}"
    if len(runs) > 1:
        title = f"Runs compared: {'; '.join(run.label for run in runs)}"
    links = [f'<a href="#{f.name}">{escape(f.title)}</a>' for f in page_figures]
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{_introduce(runs)}</p>",
        *(f'<p class="note">{escape(note)}</p>' for note in list_state_notes(runs)),
        '<nav aria-label="Sections"><a href="#summary">Summary</a><a href="#claims">Claims</a>',
        *links,
        "</nav>",
        '<h2 id="summary">Summary</h2>',
        _summary_table(runs, summarise(runs)),
        _settings_table(runs),
        '<h2 id="claims">The claims of the paper</h2>',
        _claim_list(judge_claims(runs)),
        *(_figure_section(figure, figures) for figure in page_figures),
    ]
    return html_document(title, "\n".join(body))


def _figure_section(page_figure: PageFigure, figures: Path) -> str:
    """Return a section with its figure, which is also written as PNG."""
    heading = f'<h2 id="{page_figure.name}">{escape(page_figure.title)}</h2>'
    figure = page_figure.draw()
    if figure is None:
        return f'{heading}<p class="note">Not measured in these runs.</p>'
    with rc_context(MATPLOTLIB):
        figure.savefig(figures / f"{page_figure.name}.png", dpi=150)
    figure.set_layout_engine("none")  # the PNG has laid it out; doing it again takes time
    text = page_figure.kind.text
    drawing = to_svg(figure, f"{page_figure.title}. {text}")
    return (
        f'{heading}<figure><div class="scroll">{drawing}</div>'
        f"<figcaption>{escape(typeset(text))}</figcaption></figure>"
    )


def _introduce(runs: Sequence[Run]) -> str:
    count = "A run" if len(runs) == 1 else f"{len(runs)} runs"
    steps = sorted({run.setting("steps") for run in runs})
    return ABOUT.format(count=count, steps=" or ".join(map(str, steps)))


def list_state_notes(runs: Sequence[Run]) -> list[str]:
    """Return what a reader should know about the state of the run folders."""
    unfinished = []
    for run in runs:
        planned = run.setting("iterations")
        if run.iterations < planned:
            unfinished.append(f"{run.label} ({run.iterations} of {planned} iterations)")
    changing = [
        f"{run.label} ({_describe_steps(run)})"
        for run in runs
        if not per_step.train_same_steps([run])
    ]
    torn = [f"{run.label} ({run.torn})" for run in runs if run.torn]
    notes = []
    if unfinished:
        notes.append(f"Unfinished: {', '.join(unfinished)}.")
    if changing:
        notes.append(CHANGING_STEPS.format(runs=", ".join(changing)))
    if torn:
        lines = "Lines of metrics.jsonl that could not be read and were left out"
        notes.append(f"{lines}: {', '.join(torn)}.")
    return notes


def _describe_steps(run: Run) -> str:
    """Write how many steps an iteration trained, which ones, and how often each."""
    steps, mask = per_step.trained_steps(run)
    count = per_step.steps_per_iteration(run)
    times = format_range(mask.sum(0))
    return (
        f"{count} of steps {steps[0]} to {steps[-1]} at a time,"
        f" each in {times} of {len(mask)} iterations"
    )


def _summary_table(runs: Sequence[Run], sections: Sequence[TableSection]) -> str:
    rows = []
    for section in sections:
        title = escape(typeset(section.title))
        rows.append(f'<tr class="group"><td colspan="{len(runs) + 1}">{title}</td></tr>')
        rows += [html_row([name, *values]) for name, values in section.rows]
    body = "".join(rows)
    return f'<div class="scroll"><table>{_table_head(runs)}<tbody>{body}</tbody></table></div>'


def _settings_table(runs: Sequence[Run]) -> str:
    """Return the settings that differ; nothing for a single run."""
    if len(runs) == 1:
        return ""
    settings = differing_settings([run.config for run in runs])
    rows = "".join(html_row([key, *values]) for key, values in settings.items())
    rows = rows or html_row(["nothing that changes a result", *[""] * len(runs)])
    table = f'<table class="wrap">{_table_head(runs)}<tbody>{rows}</tbody></table>'
    return f'<h3>Settings that differ</h3><div class="scroll">{table}</div>'


def _table_head(runs: Sequence[Run]) -> str:
    cells = []
    for i, run in enumerate(runs):
        color = f"var(--run-{i % len(RUN_COLORS)})"
        key = f'<span class="key" style="background:{color}"></span>'
        cells.append(f'<th scope="col">{key}{escape(run.label)}</th>')
    return f"<thead><tr><th></th>{''.join(cells)}</tr></thead>"


def _claim_list(claims: Sequence[Claim]) -> str:
    items = "".join(map(_claim_item, claims))
    return f'<p class="muted">{escape(RULES_NOTE)}</p><ol class="claims">{items}</ol>'


def _claim_item(claim: Claim) -> str:
    texts = [finding.text for finding in claim.findings] or ["no run here can decide it"]
    lines = [line for text in texts for line in text.split("\n")]
    evidence = "".join(f"<li>{escape(typeset(line))}</li>" for line in lines)
    cautions = "".join(f'<p class="note">Caution: {escape(text)}</p>' for text in claim.cautions)
    paper = escape(typeset(claim.rule.paper))
    rule = escape(typeset(claim.rule.words))
    return (
        f'<li><div class="verdict {claim.verdict.replace(" ", "-")}">{claim.verdict}</div><div>'
        f'<p class="claim">{escape(claim.rule.title)}</p><ul>{evidence}</ul>{cautions}'
        f'<p class="note">Paper: {paper}. Rule: {rule}.</p></div></li>'
    )
