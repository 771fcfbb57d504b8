"""HTML and SVG for pages that need no other file."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure

from grpo_guard.report.notation import typeset
from grpo_guard.report.theme import CSS, MATPLOTLIB, css_variables


def html_document(title: str, body: str) -> str:
    """Return a whole HTML page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def html_row(cells: Sequence[str]) -> str:
    """Return a table row; the first cell is its heading."""
    name, *values = (escape(typeset(cell)) for cell in cells)
    columns = "".join(f"<td>{value}</td>" for value in values)
    return f'<tr><th scope="row">{name}</th>{columns}</tr>'


def to_svg(figure: Figure, description: str) -> str:
    """Return a figure as inline SVG whose colours are CSS variables of the page.

    The label of every artist that has a gid becomes hover text.
    """
    buffer = io.StringIO()
    with rc_context(MATPLOTLIB):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    tag, drawing = text[text.index("<svg") :].split(">", 1)
    box = re.search(r'viewBox="[^"]*"', tag)
    assert box is not None
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.S)
    for artist in figure.findobj(lambda artist: artist.get_gid() is not None):
        title = f"<title>{escape(str(artist.get_label()))}</title>"
        drawing = drawing.replace(f'<g id="{artist.get_gid()}">', f"<g>{title}")
    for color, name in css_variables().items():
        drawing = drawing.replace(color, f"var(--{name})")
    return f'<svg role="img" aria-label="{escape(typeset(description))}" {box[0]}>{drawing}'
