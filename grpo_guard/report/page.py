"""The report as one HTML file that needs nothing else, and its figures as PNG beside it."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from grpo_guard.report import measure
from grpo_guard.report.claims import Claim, claims
from grpo_guard.report.notation import span, typeset
from grpo_guard.report.plates import Sheet, sheets
from grpo_guard.report.runs import Run, differences
from grpo_guard.report.summary import Section, summary
from grpo_guard.report.theme import CSS, RC, RUNS, variables
from grpo_guard.types import require

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

MOVING = (
    "Not every iteration trained the same steps: {runs}. What is said of a step is an average over the iterations that"
    " trained it, and a gap in a line is a step that was never trained. A step's share of the gradient is its share"
    " among those trained with it: it can be held against the dashed line, an even share, but not against steps of"
    " other iterations."
)


def write(runs: Sequence[Run], folder: Path) -> Path:
    """Write `index.html` and `figures/*.png` into a folder, return the page's path; ConfigError if that cannot be."""
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        html = page(runs, folder / "figures")
        (folder / "index.html").write_text(html, encoding="utf-8")
    except OSError as error:
        require(
            False,
            f"{folder} cannot be written ({os.strerror(error.errno or 0)}); choose another with --out",
        )
    return folder / "index.html"


def page(runs: Sequence[Run], figures: Path) -> str:
    """The page of some runs, the first being the reference; its figures are also kept as PNG."""
    shown = sheets(runs)
    title = (
        f"Runs compared: {'; '.join(run.label for run in runs)}"
        if len(runs) > 1
        else f"Run: {runs[0].label}"
    )
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{_about(runs)}</p>",
        *(f'<p class="note">{escape(note)}</p>' for note in notes(runs)),
        '<nav aria-label="Sections"><a href="#summary">Summary</a><a href="#claims">Claims</a>',
        *(f'<a href="#{sheet.name}">{escape(sheet.title)}</a>' for sheet in shown),
        "</nav>",
        '<h2 id="summary">Summary</h2>',
        _summary(runs, summary(runs)),
        _differences(runs),
        '<h2 id="claims">The claims of the paper</h2>',
        _judgement(claims(runs)),
        *(_sheet(sheet, figures) for sheet in shown),
    ]
    return document(title, "\n".join(body))


def _sheet(sheet: Sheet, figures: Path) -> str:
    """A section with its figure, also written as PNG."""
    head, text = f'<h2 id="{sheet.name}">{escape(sheet.title)}</h2>', sheet.plate.text
    figure = sheet.draw()
    if figure is None:
        return f'{head}<p class="note">Not measured in these runs.</p>'
    with rc_context(RC):
        figure.savefig(figures / f"{sheet.name}.png", dpi=150)
    figure.set_layout_engine("none")
    drawing, caption = svg(figure, f"{sheet.title}. {text}"), escape(typeset(text))
    return f'{head}<figure><div class="scroll">{drawing}</div><figcaption>{caption}</figcaption></figure>'


def svg(figure: Figure, alt: str) -> str:
    """A figure as inline SVG whose colours are the page's variables; the label of what has a gid is hover text."""
    buffer = io.StringIO()
    with rc_context(RC):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue()
    tag, rest = drawing[drawing.index("<svg") :].split(">", 1)
    box = re.search(r'viewBox="[^"]*"', tag)
    assert box is not None
    drawing = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.S)
    for hint in figure.findobj(lambda artist: artist.get_gid() is not None):
        title = f"<title>{escape(str(hint.get_label()))}</title>"
        drawing = drawing.replace(f'<g id="{hint.get_gid()}">', f"<g>{title}")
    for color, name in variables().items():
        drawing = drawing.replace(color, f"var(--{name})")
    return f'<svg role="img" aria-label="{escape(typeset(alt))}" {box[0]}>{drawing}'


def _about(runs: Sequence[Run]) -> str:
    count = "A run" if len(runs) == 1 else f"{len(runs)} runs"
    steps = sorted({run.setting("steps") for run in runs})
    return ABOUT.format(count=count, steps=" or ".join(map(str, steps)))


def notes(runs: Sequence[Run]) -> list[str]:
    """What a reader should know about the state of the folders."""
    planned = {run: run.setting("iterations") for run in runs}
    running = [
        f"{r.label} ({r.iterations} of {n} iterations)"
        for r, n in planned.items()
        if r.iterations < n
    ]
    torn = [f"{run.label} ({run.torn})" for run in runs if run.torn]
    moving = [f"{run.label} ({_window(run)})" for run in runs if not measure.same_steps([run])]
    found = [f"Unfinished: {', '.join(running)}."] if running else []
    found += [MOVING.format(runs=", ".join(moving))] if moving else []
    found += (
        [f"Lines of metrics.jsonl that could not be read and were left out: {', '.join(torn)}."]
        if torn
        else []
    )
    return found


def _window(run: Run) -> str:
    """How many steps an iteration trained, which ones, and how often each."""
    steps, at = measure.trained(run)
    which = f"{measure.window(run)} of steps {steps[0]} to {steps[-1]} at a time"
    return f"{which}, each in {span(at.sum(0))} of {len(at)} iterations"


def _summary(runs: Sequence[Run], sections: Sequence[Section]) -> str:
    rows = []
    for section in sections:
        rows.append(
            f'<tr class="group"><td colspan="{len(runs) + 1}">{escape(typeset(section.title))}</td></tr>'
        )
        rows += [row([name, *values]) for name, values in section.rows]
    return f'<div class="scroll"><table>{_head(runs)}<tbody>{"".join(rows)}</tbody></table></div>'


def _differences(runs: Sequence[Run]) -> str:
    """The settings that tell the runs apart."""
    if len(runs) == 1:
        return ""
    rows = "".join(row([key, *values]) for key, values in differences(runs).items())
    rows = rows or row(["nothing that changes a result", *[""] * len(runs)])
    table = f'<table class="wrap">{_head(runs)}<tbody>{rows}</tbody></table>'
    return f'<h3>Settings that differ</h3><div class="scroll">{table}</div>'


def _head(runs: Sequence[Run]) -> str:
    keys = [
        f'<span class="key" style="background:var(--run-{i % len(RUNS)})"></span>'
        for i in range(len(runs))
    ]
    cells = "".join(
        f'<th scope="col">{key}{escape(run.label)}</th>'
        for key, run in zip(keys, runs, strict=True)
    )
    return f"<thead><tr><th></th>{cells}</tr></thead>"


def row(cells: Sequence[str]) -> str:
    name, *values = (escape(typeset(cell)) for cell in cells)
    return f'<tr><th scope="row">{name}</th>{"".join(f"<td>{value}</td>" for value in values)}</tr>'


def _judgement(found: Sequence[Claim]) -> str:
    return (
        f'<p class="muted">{escape(INTRO)}</p><ol class="claims">{"".join(map(_claim, found))}</ol>'
    )


def _claim(claim: Claim) -> str:
    texts = [finding.text for finding in claim.findings] or ["no such run among these"]
    evidence = "".join(
        f"<li>{escape(typeset(line))}</li>" for text in texts for line in text.split("\n")
    )
    cautions = "".join(f'<p class="note">Caution: {escape(text)}</p>' for text in claim.cautions)
    paper, rule = (escape(typeset(text)) for text in (claim.rule.paper, claim.rule.words))
    return (
        f'<li><div class="verdict {claim.verdict.replace(" ", "-")}">{claim.verdict}</div><div>'
        f'<p class="claim">{escape(claim.rule.title)}</p><ul>{evidence}</ul>{cautions}'
        f'<p class="note">Paper: {paper}. Rule: {rule}.</p></div></li>'
    )


def document(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )
