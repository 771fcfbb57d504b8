"""Colours of a report, in a light and a dark form, and matplotlib settings."""

from __future__ import annotations

from typing import Any

ARM_COLORS = (
    ("#0072b2", "#56b4f0"),
    ("#d55e00", "#ff9550"),
    ("#009e73", "#35cfa3"),
    ("#a8528a", "#e9a6cf"),
    ("#2a9dc0", "#c8f4ff"),
    ("#1f2f80", "#3f6fd0"),
    ("#4d4d4d", "#777777"),
    ("#882200", "#b5482a"),
)
"""One colour per arm, for light and for dark paper.

The first are Okabe and Ito's, which colour-blind readers can tell apart.
"""

INK_COLORS = ("#1c2127", "#e4e7eb")
"""Colour of text, also for light and for dark paper, as are the next ones."""
MUTED_COLORS = ("#5b6570", "#9aa5b1")
RULE_COLORS = ("#d3d9df", "#39414a")
BAND_COLORS = ("#e9eef2", "#262d35")
PAPER_COLORS = ("#ffffff", "#15191e")

MARKERS = {
    "o": "M1 0A1 1 0 1 1-1 0A1 1 0 1 1 1 0Z",
    "s": "M-.9-.9H.9V.9H-.9Z",
    "^": "M0-1.1L1.1.9H-1.1Z",
    "D": "M0-1.2L1.2 0 0 1.2-1.2 0Z",
    "v": "M0 1.1L1.1-.9H-1.1Z",
    "P": "M-.4-1.1H.4V-.4H1.1V.4H.4V1.1H-.4V.4H-1.1V-.4H-.4Z",
    "X": "M0-.6L.6-1.2 1.2-.6.6 0 1.2.6.6 1.2 0 .6-.6 1.2-1.2.6-.6 0-1.2-.6-.6-1.2Z",
}
"""One marker per arm: its name in matplotlib, and its outline as an SVG path of radius 1.

7 markers and 8 colours share no factor, so 56 arms all look different.
"""

MATPLOTLIB: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK_COLORS[0],
    "axes.titley": 1.0,  # fixed, because the search for a free place takes an eighth of the time
    "axes.edgecolor": RULE_COLORS[0],
    "axes.labelcolor": MUTED_COLORS[0],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-4, 6),
    "axes.formatter.use_mathtext": False,
    "grid.color": RULE_COLORS[0],
    "grid.linewidth": 0.6,
    "xtick.color": MUTED_COLORS[0],
    "ytick.color": MUTED_COLORS[0],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK_COLORS[0],
    "text.parse_math": False,  # prompts and labels may hold a "$"
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "errorbar.capsize": 0,
    "figure.facecolor": "#ffffff",
    "savefig.facecolor": "#ffffff",
    "svg.fonttype": "path",
    "svg.hashsalt": "grpo_guard",
}
"""Matplotlib's settings for every figure."""


def line_color(index: int) -> str:
    """Return the colour of an arm on light paper."""
    return ARM_COLORS[index % len(ARM_COLORS)][0]


def line_marker(index: int) -> str:
    """Return the marker of an arm; colour and marker together differ for the first 56 arms."""
    return list(MARKERS)[index % len(MARKERS)]


def marker_path(index: int) -> str:
    """Return the outline of the marker of an arm as an SVG path."""
    return MARKERS[line_marker(index)]


def css_variables() -> dict[str, str]:
    """Return the name of the CSS variable for each light colour that figures use."""
    return {
        INK_COLORS[0]: "ink",
        MUTED_COLORS[0]: "muted",
        RULE_COLORS[0]: "rule",
        BAND_COLORS[0]: "band",
        PAPER_COLORS[0]: "paper",
    } | {light: f"arm-{i}" for i, (light, _) in enumerate(ARM_COLORS)}


def palette(mode: int) -> dict[str, str]:
    """Return the CSS variables of the light (0) or the dark (1) form."""
    colors = {
        "ink": INK_COLORS,
        "muted": MUTED_COLORS,
        "rule": RULE_COLORS,
        "band": BAND_COLORS,
        "paper": PAPER_COLORS,
        "yes": ("#0b7a4b", "#4fd39a"),
        "no": ("#b4471b", "#ff9d73"),
        "open": ("#7a5b00", "#e5bf4f"),
    }
    colors |= {f"arm-{i}": pair for i, pair in enumerate(ARM_COLORS)}
    return {name: pair[mode] for name, pair in colors.items()}
