"""HTML from templates, which escape every value, and figures as inline SVG."""

from __future__ import annotations

import io
import os
import re
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from grpo_guard.report import theme
from grpo_guard.report.notation import bind_intervals, typeset
from grpo_guard.report.theme import MATPLOTLIB, css_variables


def render(template: str, **values: Any) -> str:
    """Return a whole HTML page from a template of `templates/`.

    Templates see the style sheet and the palette, and write numbers with the filter `typeset`.
    """
    palettes = [theme.palette(mode) for mode in (0, 1)]
    return _environment().get_template(template).render(palettes=palettes, **values)


def write_html(path: Path, html: str) -> None:
    """Write a page to a new file and rename it, so that no reader finds a part of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(html, encoding="utf-8")
    os.replace(temporary, path)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("grpo_guard.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["typeset"] = lambda text: bind_intervals(typeset(text))
    environment.globals["vendored"] = read_vendored
    environment.globals["marker_path"] = theme.marker_path
    return environment


@cache
def read_vendored(name: str) -> Markup:
    """Return a file of uPlot, which pages hold so that they need no network."""
    return Markup(files("grpo_guard.assets").joinpath("uplot", name).read_text(encoding="utf-8"))


def to_svg(figure: Figure, description: str) -> Markup:
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
    label = escape(typeset(description))
    return Markup(f'<svg role="img" aria-label="{label}" {box[0]}>{drawing}')
