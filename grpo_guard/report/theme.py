"""Colours, matplotlib settings and style sheet of a report, in a light and a dark form."""

from __future__ import annotations

from typing import Any

RUN_COLORS = (
    ("#0072b2", "#56b4f0"),
    ("#d55e00", "#ff9550"),
    ("#009e73", "#35cfa3"),
    ("#a8528a", "#e9a6cf"),
    ("#2a9dc0", "#c8f4ff"),
    ("#1f2f80", "#3f6fd0"),
    ("#4d4d4d", "#777777"),
    ("#882200", "#b5482a"),
)
"""One colour per run, for light and for dark paper.

The first are Okabe and Ito's, which colour-blind readers can tell apart.
"""

INK_COLORS = ("#1c2127", "#e4e7eb")
"""Colour of text, also for light and for dark paper, as are the next ones."""
MUTED_COLORS = ("#5b6570", "#9aa5b1")
RULE_COLORS = ("#d3d9df", "#39414a")
BAND_COLORS = ("#e9eef2", "#262d35")

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""One marker per run. 7 markers and 8 colours share no factor, so 56 runs all look different."""

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


def run_style(index: int) -> dict[str, Any]:
    """Return the colour and marker of a run, for matplotlib; the first 56 runs all differ."""
    return {
        "color": RUN_COLORS[index % len(RUN_COLORS)][0],
        "marker": MARKERS[index % len(MARKERS)],
    }


def css_variables() -> dict[str, str]:
    """Return the name of the CSS variable for each light colour that figures use."""
    return {
        INK_COLORS[0]: "ink",
        MUTED_COLORS[0]: "muted",
        RULE_COLORS[0]: "rule",
        BAND_COLORS[0]: "band",
        "#ffffff": "paper",
    } | {light: f"run-{i}" for i, (light, _) in enumerate(RUN_COLORS)}


def _palette(mode: int) -> str:
    """Return the CSS variables of the light (0) or the dark (1) form."""
    colors = {
        "ink": INK_COLORS,
        "muted": MUTED_COLORS,
        "rule": RULE_COLORS,
        "band": BAND_COLORS,
        "paper": ("#ffffff", "#15191e"),
    }
    colors |= {"yes": ("#0b7a4b", "#4fd39a"), "no": ("#b4471b", "#ff9d73")}
    colors |= {f"run-{i}": pair for i, pair in enumerate(RUN_COLORS)}
    return "".join(f"--{name}:{pair[mode]};" for name, pair in colors.items())


CSS = (
    f":root{{color-scheme:light dark;{_palette(0)}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_palette(1)}}}}}"
    """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:40px 24px 96px}
h1{font-size:30px;line-height:1.2;margin:0 0 8px;letter-spacing:-.01em}
h2{font-size:21px;margin:56px 0 8px;padding-top:20px;border-top:1px solid var(--rule)}
h3{font-size:16px;margin:36px 0 2px}
p{margin:8px 0;max-width:78ch}
.muted,figcaption,.note{color:var(--muted);font-size:14px}
nav{margin:16px 0 0;font-size:14px;display:flex;flex-wrap:wrap;gap:4px 18px}
a{color:inherit;text-decoration-color:var(--rule);text-underline-offset:3px}
a:hover{text-decoration-color:currentColor}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums;
margin:12px 0;min-width:60%}
th,td{text-align:right;padding:5px 0 5px 28px;border-bottom:1px solid var(--rule);
vertical-align:top;white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0;font-weight:400}
thead th{font-weight:600;border-bottom-color:var(--muted)}
tr.group td{padding-top:18px;font-weight:600;border-bottom-color:var(--muted)}
.wrap td{white-space:normal;overflow-wrap:anywhere;min-width:9em}
.seen td,.seen th{text-align:left}
.key{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.45em}
ol.claims{list-style:none;padding:0;margin:16px 0}
ol.claims>li{display:grid;grid-template-columns:140px 1fr;gap:0 20px;padding:16px 0;
border-bottom:1px solid var(--rule)}
.verdict{white-space:nowrap;font-weight:600;font-size:14px;padding-top:2px;color:var(--muted)}
.verdict::before{display:inline-block;width:1.3em}
.shows{color:var(--yes)}.shows::before{content:"\\2713"}
.does-not-show{color:var(--no)}.does-not-show::before{content:"\\2717"}
.not-measured::before{content:"\\2013"}
.claim{font-weight:600;margin:0}
.claims ul{margin:4px 0;padding:0;list-style:none;font-variant-numeric:tabular-nums;font-size:15px}
.claims p{margin:4px 0}
figure{margin:8px 0 0}
figure svg{display:block;width:100%;min-width:720px;height:auto}
figcaption{max-width:90ch;margin-top:6px}
@media (max-width:640px){ol.claims>li{grid-template-columns:1fr}main{padding:24px 16px 64px}}
@media print{h2{break-after:avoid}figure,ol.claims>li{break-inside:avoid}}
"""
)
"""The style sheet of the page."""
