"""The page in headless Chromium: no error, no request, nothing that scrolls sideways, and keys."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from grpo_guard.report import analyse_runs, read_runs
from grpo_guard.report.page import compose_page, lay_out

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no Chromium here; install the package chromium"
)

OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--virtual-time-budget=2500", "--dump-dom",
)  # fmt: skip

WATCH = """<script>
const problems = [];
addEventListener("error", (event) => problems.push(String(event.message)), true);
addEventListener("unhandledrejection", (event) => problems.push(String(event.reason)));
console.error = console.warn = (...parts) => problems.push(parts.join(" "));
</script>"""

PROBE = """<script>
// Printing makes all charts, wherever they are.
setTimeout(() => { dispatchEvent(new Event("beforeprint")); setTimeout(report, 500); }, 500);
function press(element, key) {
  element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
}
function report() {
  const chart = document.querySelector(".first .chart"), tip = chart.querySelector(".tip");
  const result = { problems, width: innerWidth };
  press(chart, "ArrowRight");
  result.tip = tip.textContent;
  press(chart, "Escape");
  result.tipHidden = tip.hidden;
  const all = [...document.querySelectorAll(".chart")];
  result.charts = all.length;
  result.drawn = all.filter((each) => each.querySelector("canvas")).length;
  result.requests = performance.getEntriesByType("resource").map((entry) => entry.name)
    .filter((name) => !name.startsWith("data:"));
  const wide = (element) => element.getBoundingClientRect().right > innerWidth + 1;
  result.sideways = document.documentElement.scrollWidth - innerWidth;
  const figures = document.querySelectorAll("figure, .chart, figure svg, .pair");
  result.wideFigures = [...figures].filter(wide).length;
  const table = document.querySelector(".scroll");
  const cell = table.querySelector("tbody th[scope=row]");
  const before = cell.getBoundingClientRect().left;
  table.scrollLeft = 1000;
  result.moved = Math.abs(cell.getBoundingClientRect().left - before);
  table.scrollLeft = 0;
  result.valueAt = cell.nextElementSibling.getBoundingClientRect().right;
  result.answerAt = document.querySelector(".answers").getBoundingClientRect().top + scrollY;
  result.pairsAt = document.querySelector(".pairs").getBoundingClientRect().bottom + scrollY;
  const button = document.querySelector("button[data-arm]");
  button.click();
  result.pressed = button.getAttribute("aria-pressed");
  press(chart, "ArrowRight");
  result.otherArm = tip.textContent;
  const slider = document.querySelector("input[data-films]");
  const picture = document.querySelector(".film img");
  const last = picture.src;
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  result.slid = picture.src !== last && slider.nextElementSibling.textContent;
  const select = document.querySelector("select[data-figure$=evaluations]");
  select.value = "hours";
  select.dispatchEvent(new Event("change"));
  result.paper = getComputedStyle(document.body).backgroundColor;
  result.afterwards = problems.length;
  parent.postMessage(JSON.stringify(result), "*");
}
</script>"""

# A window of Chromium is at least 500 pixels wide, and a frame is as narrow as it is told to be.
FRAME = """<!doctype html><pre id="result"></pre><script>
addEventListener("message", (event) => {{
  document.getElementById("result").textContent = event.data;
}});
</script><iframe src="index.html" width="{0}" height="{1}" style="border:0"></iframe>"""


@pytest.fixture(scope="module")
def page(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page with a script before it that notes problems and one after it that tries it."""
    text = compose_page(lay_out(analyse_runs(read_runs(pair))))
    text = text.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{PROBE}</body>")
    path = tmp_path_factory.mktemp("browser") / "index.html"
    path.write_text(text, encoding="utf-8")
    return path


def open_page(page: Path, profile: Path, size: tuple[int, int], *options: str) -> dict[str, Any]:
    """Return what the page reports of itself in a frame of some width and height."""
    frame = page.with_name(f"frame{size[0]}.html")
    frame.write_text(FRAME.format(*size), encoding="utf-8")
    window = f"--window-size={size[0] + 100},{size[1] + 100}"
    command = [CHROMIUM, *OPTIONS, *options, window, f"--user-data-dir={profile}", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r'<pre id="result">(.+?)</pre>', done.stdout, re.S)
    assert match, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(html.unescape(match[1]))
    return result


@pytest.mark.parametrize(
    ("size", "dark"), [((1400, 900), False), ((390, 844), True)], ids=["wide", "narrow and dark"]
)
def test_the_page_works_in_a_browser(
    page: Path, tmp_path: Path, size: tuple[int, int], dark: bool
) -> None:
    options = ["--blink-settings=preferredColorScheme=0"] if dark else []
    result = open_page(page, tmp_path, size, *options)
    assert result["width"] == size[0]
    assert result["problems"] == []
    assert result["afterwards"] == 0
    assert result["requests"] == []
    assert result["drawn"] == result["charts"] > 20
    # nothing but tables scrolls sideways; the first column stays, and a value is beside it
    assert (result["sideways"], result["wideFigures"], result["moved"]) == (0, 0, 0)
    assert result["valueAt"] <= size[0]
    # the answer, the first figure and the pictures are on the first screen
    assert result["answerAt"] < size[1] / 4
    assert result["pairsAt"] <= size[1]
    # keys read values, arms can be switched off, and the slider changes the pictures
    assert result["tip"].startswith("vanilla, seed 0")
    assert result["tipHidden"]
    assert result["pressed"] == "false"
    assert result["otherArm"].startswith("guard, seed 0")
    assert result["slid"] == "iteration 0"
    assert result["paper"] == ("rgb(21, 25, 30)" if dark else "rgb(255, 255, 255)")
