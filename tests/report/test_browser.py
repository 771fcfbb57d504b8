"""The page in headless Chromium: no error, no request, nothing that scrolls sideways, and keys."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
    "--hide-scrollbars", "--disable-dev-shm-usage",
)  # fmt: skip
PATIENCE = 100
"""Seconds that a page has for its answer on a busy machine."""

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
  const event = new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true });
  return element.dispatchEvent(event);
}
function report() {
  const chart = document.querySelector(".first .chart"), tip = chart.querySelector(".tip");
  const result = { problems, width: innerWidth };
  press(chart, "ArrowRight");
  result.tip = tip.textContent;
  press(chart, "Escape");
  result.tipHidden = tip.hidden;
  result.homeScrolls = press(chart, "Home");
  const bar = document.querySelector(".bar");
  result.bar = bar.offsetHeight;
  result.below = parseFloat(getComputedStyle(document.documentElement).scrollPaddingTop);
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
  // of a logarithmic axis, and of two others
  result.ticks = [
    writeLogTicks([5.8e-6, 1e-5, null, 2e-5, 3e-5], ""), writeTicks([0.35, null, 0.4], ""),
    writeTicks([-2e-4, 0], ""), writeTicks([19200, 38400], ""), writeTicks([0.025, 0.05], "%"),
  ].map((texts) => texts.join("|"));
  result.axisTitles = [...state.charts].map(({ plot }) => plot.axes[0].label());
  result.paper = getComputedStyle(document.body).backgroundColor;
  setTimeout(() => finish(result), 200);
}
function finish(result) {
  const bounds = ({ panel, plot }) => {
    const lines = panel.lines.filter(isVisible);
    const heights = lines.flatMap((line) => [...line.y, ...(line.high || [])]);
    return [plot.scales.y.max, Math.max(...heights.filter((y) => y !== null))];
  };
  result.cut = [...state.charts].map(bounds).filter(([top, highest]) => !(top > highest)).length;
  result.afterwards = problems.length;
  parent.postMessage(JSON.stringify(result), "*");
}
</script>"""

# A window of Chromium is at least 500 pixels wide, and a frame is as narrow as it is told to be.
FRAME = """<!doctype html><script>
addEventListener("message", (event) => {{
  fetch("{address}", {{ method: "POST", mode: "no-cors", body: event.data }});
}});
</script><iframe src="{page}" width="{width}" height="{height}" style="border:0"></iframe>"""


class Browser:
    """Headless Chromium that opens a page in a frame and hears what the page says of itself.

    The answer comes over a local port and in real time: with a budget of virtual time, Chromium
    can wait forever on a busy machine.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers: queue.Queue[str] = queue.Queue()
        answers = self.answers

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(204)
                self.end_headers()
                answers.put(body.decode("utf-8"))

            def log_message(self, *_: object) -> None:
                """Keep the test's output free of requests."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def open(self, page: Path, size: tuple[int, int], *options: str) -> str:
        """Return the message of a page in a frame of some width and height.

        Raises:
            TimeoutError: The page said nothing in time, or Chromium ended before it did.

        """
        width, height = size
        address = f"http://127.0.0.1:{self.server.server_port}/"
        frame = page.with_name(f"frame{width}.html")
        frame.write_text(
            FRAME.format(address=address, page=page.name, width=width, height=height),
            encoding="utf-8",
        )
        window = f"--window-size={width + 100},{height + 100}"
        profile = self.folder / f"profile{time.monotonic_ns()}"
        command = [CHROMIUM, *OPTIONS, *options, window, f"--user-data-dir={profile}"]
        errors = self.folder / "errors.txt"
        with errors.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [*command, frame.as_uri()], stdout=file, stderr=file, start_new_session=True
            )
            try:
                return self._wait(process)
            except TimeoutError as error:
                raise TimeoutError(f"{error}\n{errors.read_text()[-2000:]}") from None
            finally:
                with suppress(ProcessLookupError):  # it has ended by itself
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _wait(self, process: subprocess.Popen[bytes]) -> str:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                return self.answers.get(timeout=0.2)
            except queue.Empty:
                if process.poll() is not None:
                    raise TimeoutError(f"Chromium ended with code {process.returncode}") from None
        raise TimeoutError(f"the page said nothing in {PATIENCE} seconds")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Yield a browser that has shown an empty page; without one, there is nothing to test."""
    folder = tmp_path_factory.mktemp("chromium")
    browser = Browser(folder)
    empty = folder / "empty.html"
    empty.write_text('<!doctype html><script>parent.postMessage("ready", "*")</script>')
    try:
        browser.open(empty, (600, 400))
    except TimeoutError as error:
        reason = str(error).splitlines()[0]
        pytest.skip(f"Chromium shows no page on this machine, not even an empty one: {reason}")
    yield browser
    browser.server.shutdown()
    browser.server.server_close()


@pytest.fixture(scope="module")
def page(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page with a script before it that notes problems and one after it that tries it."""
    text = compose_page(lay_out(analyse_runs(read_runs(pair))))
    text = text.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{PROBE}</body>")
    path = tmp_path_factory.mktemp("browser") / "index.html"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("size", "dark"), [((1400, 900), False), ((390, 844), True)], ids=["wide", "narrow and dark"]
)
def test_the_page_works_in_a_browser(
    browser: Browser, page: Path, size: tuple[int, int], dark: bool
) -> None:
    options = ["--blink-settings=preferredColorScheme=0"] if dark else []
    result: dict[str, Any] = json.loads(browser.open(page, size, *options))
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
    # every chart names what it is over, and the numbers of an axis have the same decimals
    assert {"hours", "iteration", "denoising step (0 is noise)"} < set(result["axisTitles"])
    assert result["ticks"] == [
        "|1e−5||2e−5|", "0.35||0.40", "−2e−4|0", "19,200|38,400", "2.5 %|5.0 %",
    ]  # fmt: skip
    assert not result["homeScrolls"]
    # a section that is jumped to begins below the bar, which takes little of a phone's screen
    assert result["below"] == result["bar"] < 50
    assert result["pressed"] == "false"
    assert result["otherArm"].startswith("guard, seed 0")
    # what is visible keeps its place on the axes after a change
    assert result["cut"] == 0
    assert result["slid"] == "iteration 0"
    assert result["paper"] == ("rgb(21, 25, 30)" if dark else "rgb(255, 255, 255)")
