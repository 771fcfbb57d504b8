"use strict";
// Draws the figures of the page from the numbers in its two JSON blocks. It makes no request.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const figures = new Map(read("figures").map((figure) => [figure.name, figure]));
const state = { hidden: new Set(), seeds: true, charts: new Set() };
const REACH = 40; // pixels from the pointer in which a point is described
const MOST_POINTS = 30; // of a curve whose points are all drawn; of longer ones only the ends
const FONT = "12px system-ui,sans-serif";
const root = document.documentElement;
const colour = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();

function isVisible(line) {
  return !state.hidden.has(line.arm) && (line.mean || state.seeds);
}

const typeset = (text) => text.replaceAll("-", "\u2212");
const isTiny = (value) => value !== 0 && Math.abs(value) < 1e-3;

function write(value, unit) {
  if (value === null || value === undefined) return "-";
  if (unit === "%") return +(100 * value).toPrecision(3) + " %";
  if (Number.isInteger(value)) return typeset(value.toLocaleString("en-US"));
  return typeset(isTiny(value) ? (+value.toPrecision(3)).toExponential() : String(+value.toPrecision(4)));
}

// The numbers of an axis have the same decimals. uPlot has null for lines without a number.
function writeTicks(ticks, unit) {
  const shown = ticks.map((tick) => (tick === null ? null : +(unit === "%" ? 100 * tick : tick).toPrecision(6)));
  if (unit !== "%" && shown.some((tick) => tick !== null && isTiny(tick))) return shown.map((tick) => (tick === null ? "" : write(tick)));
  const decimals = Math.max(...shown.map((tick) => (String(tick).split(".")[1] || "").length));
  const form = { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
  return shown.map((tick) => (tick === null ? "" : typeset(tick.toLocaleString("en-US", form)) + (unit === "%" ? " %" : "")));
}

// On a logarithmic axis, the numbers are 1, 2 and 5 times a power of ten, if there are any.
function writeLogTicks(ticks, unit) {
  const isRound = (tick) => tick !== null && [1, 2, 5].includes(+tick.toExponential(1).split("e")[0]);
  const some = ticks.some(isRound);
  return ticks.map((tick) => (tick === null || (some && !isRound(tick)) ? "" : write(+tick.toPrecision(2), unit)));
}

function widen(low, high, log) {
  if (!(low <= high)) return log ? [0.1, 1] : [0, 1];
  if (log) return [low / 1.3, high * 1.3];
  const room = 0.05 * (high - low) || Math.abs(high) * 0.05 || 0.5;
  return [low - room, high + room];
}

function extent(values, log) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value === null || value === undefined || (log && value <= 0)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return widen(low, high, log);
}

// Fits both axes to what is visible.
function fit(chart) {
  const { plot, panel } = chart;
  const lines = panel.lines.filter(isVisible);
  const [x0, x1] = extent(lines.flatMap((line) => line.x[chart.axis] || []));
  const heights = lines.flatMap((line) => [...line.y, ...(line.low || []), ...(line.high || [])]);
  if (panel.baseline !== null && !panel.log) heights.push(panel.baseline);
  let [y0, y1] = extent(heights, panel.log);
  if (panel.unit === "%") y0 = Math.max(0, y0);
  plot.batch(() => {
    plot.setScale("x", { min: x0, max: x1 });
    plot.setScale("y", { min: y0, max: y1 });
  });
}

function drawLine(plot, chart, line) {
  if (!isVisible(line)) return;
  const ctx = plot.ctx, ratio = devicePixelRatio || 1, box = plot.bbox;
  const at = (i) => [
    plot.valToPos(line.x[chart.axis][i], "x", true),
    plot.valToPos(line.y[i], "y", true),
  ];
  ctx.save();
  ctx.beginPath();
  ctx.rect(box.left, box.top, box.width, box.height);
  ctx.clip();
  ctx.strokeStyle = ctx.fillStyle = colour("arm-" + (line.color % 8));
  if (line.low) drawInterval(plot, chart, line);
  ctx.globalAlpha = line.behind ? 0.45 : line.mean ? 1 : chart.panel.faint;
  ctx.lineWidth = (line.mean && !line.behind ? 2 : 1) * ratio;
  if (line.behind) ctx.setLineDash([4 * ratio, 3 * ratio]);
  ctx.beginPath();
  let pen = false;
  line.y.forEach((y, i) => {
    const drawn = y !== null && line.x[chart.axis][i] !== null;
    if (drawn) ctx[pen ? "lineTo" : "moveTo"](...at(i));
    pen = drawn;
  });
  ctx.stroke();
  if (line.mean && !line.behind) drawPoints(ctx, line, at, chart, ratio);
  ctx.restore();
}

// Draws the marker of the arm: from the ninth arm on, colours come again with other markers.
function drawPoints(ctx, line, at, chart, ratio) {
  const marker = new Path2D(line.marker), size = 3 * ratio;
  line.y.forEach((y, i) => {
    if (y === null || line.x[chart.axis][i] === null) return;
    if (i > 0 && i < line.y.length - 1 && line.y.length >= MOST_POINTS) return;
    const place = new Path2D(), ink = ctx.fillStyle;
    place.addPath(marker, new DOMMatrix([size, 0, 0, size, ...at(i)]));
    if (chart.figure.path && i === 0) ctx.fillStyle = colour("paper");
    ctx.fill(place);
    ctx.stroke(place);
    ctx.fillStyle = ink;
  });
}

function drawInterval(plot, chart, line) {
  const ctx = plot.ctx, xs = line.x[chart.axis];
  const place = (i, value) => [plot.valToPos(xs[i], "x", true), plot.valToPos(value, "y", true)];
  const known = xs.map((_, i) => i).filter((i) => line.low[i] !== null && xs[i] !== null);
  const bars = chart.figure.path && !line.behind;
  ctx.globalAlpha = bars ? 0.4 : 0.16;
  ctx.beginPath();
  if (bars) {
    ctx.lineWidth = devicePixelRatio || 1;
    known.forEach((i) => { ctx.moveTo(...place(i, line.low[i])); ctx.lineTo(...place(i, line.high[i])); });
    ctx.stroke();
  } else {
    known.forEach((i, n) => ctx[n ? "lineTo" : "moveTo"](...place(i, line.high[i])));
    known.reverse().forEach((i) => ctx.lineTo(...place(i, line.low[i])));
    ctx.fill();
  }
}

function drawBaseline(plot, panel) {
  if (panel.baseline === null) return;
  const y = plot.valToPos(panel.baseline, "y", true), { left, width, top, height } = plot.bbox;
  if (y < top || y > top + height) return;
  plot.ctx.save();
  plot.ctx.strokeStyle = colour("muted");
  plot.ctx.beginPath();
  plot.ctx.moveTo(left, y);
  plot.ctx.lineTo(left + width, y);
  plot.ctx.stroke();
  plot.ctx.restore();
}

function axisOptions(unit, size, log) {
  return {
    stroke: () => colour("muted"),
    grid: { stroke: () => colour("rule"), width: 1 },
    ticks: { show: false },
    font: FONT,
    size,
    values: (_, ticks) => (log ? writeLogTicks : writeTicks)(ticks, unit),
  };
}

function makeChart(element) {
  const figure = figures.get(element.dataset.figure);
  const panel = figure.panels[+element.dataset.panel];
  const chart = { element, figure, panel, axis: figure.axes[0] };
  const lines = [...panel.lines].sort((a, b) => b.behind - a.behind || a.mean - b.mean);
  const keep = (_, low, high) => [low ?? 0, high ?? 1];
  const paths = (plot, index) => { drawLine(plot, chart, lines[index - 1]); return null; };
  const options = {
    mode: 2,
    width: element.clientWidth,
    height: element.clientHeight,
    legend: { show: false },
    cursor: {
      points: { show: false },
      drag: { x: true, y: true, dist: 5 },
      bind: { dblclick: () => () => { fit(chart); } },
    },
    scales: { x: { time: false, range: keep }, y: { distr: panel.log ? 3 : 1, range: keep } },
    axes: [
      { ...axisOptions("", 26), space: 60, label: () => figure.titles[chart.axis], labelSize: 20, labelFont: FONT },
      axisOptions(panel.unit, 62, panel.log),
    ],
    series: [null, ...lines.map(() => ({ paths, points: { show: false } }))],
    hooks: { drawAxes: [(plot) => drawBaseline(plot, panel)] },
  };
  const data = [null, ...lines.map((line) => [line.x[chart.axis].map((x) => x ?? 0), line.y.map((y) => y ?? 0)])];
  chart.plot = new uPlot(options, data, element);
  fit(chart);
  describeOnHover(chart);
  state.charts.add(chart);
  new ResizeObserver(() => {
    chart.plot.setSize({ width: element.clientWidth, height: element.clientHeight });
  }).observe(element);
  return chart;
}

// A point is (line, index). Pointer and arrow keys choose one, and a box beside it has its numbers.
function describeOnHover(chart) {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "status");
  chart.element.append(tip);
  chart.tip = tip;
  const over = chart.plot.over;
  over.addEventListener("mousemove", (event) => {
    const box = over.getBoundingClientRect();
    show(chart, nearest(chart, event.clientX - box.left, event.clientY - box.top));
  });
  over.addEventListener("mouseleave", () => show(chart, null));
  chart.element.addEventListener("blur", () => show(chart, null));
  chart.element.addEventListener("keydown", (event) => pressKey(chart, event));
}

function nearest(chart, x, y) {
  let best = null, least = REACH;
  for (const line of chart.panel.lines.filter(isVisible)) {
    line.y.forEach((value, index) => {
      const place = line.x[chart.axis][index];
      if (value === null || place === null) return;
      const dx = chart.plot.valToPos(place, "x") - x, dy = chart.plot.valToPos(value, "y") - y;
      const distance = Math.hypot(dx, dy) + (line.mean ? 0 : 4);
      if (distance < least) [best, least] = [{ line, index }, distance];
    });
  }
  return best;
}

function show(chart, point) {
  const { tip, plot, panel } = chart;
  chart.point = point;
  tip.hidden = !point;
  if (!point) return;
  const { line, index } = point;
  const value = write(line.y[index], panel.unit);
  const interval = line.low && line.low[index] !== null
    ? ` (${write(line.low[index], panel.unit)} to ${write(line.high[index], panel.unit)})` : "";
  // the axis of the chart comes first
  const axes = [...new Set([chart.axis, ...chart.figure.axes, ...Object.keys(line.x)])];
  const places = axes.map((axis) => `${axis} ${write(line.x[axis][index])}`);
  tip.replaceChildren();
  [`${line.arm}, ${line.label}`, `${panel.title}: ${value}${interval}`, places.join(", ")].forEach((text) => {
    const row = document.createElement("div");
    row.textContent = text;
    tip.append(row);
  });
  const left = plot.valToPos(line.x[chart.axis][index], "x") + plot.over.offsetLeft;
  const top = plot.valToPos(line.y[index], "y") + plot.over.offsetTop;
  const room = chart.element.clientWidth - tip.offsetWidth;
  tip.style.left = Math.max(0, Math.min(room, left + 10)) + "px";
  tip.style.top = Math.max(0, top - tip.offsetHeight - 8) + "px";
}

function pressKey(chart, event) {
  const lines = chart.panel.lines.filter((line) => isVisible(line) && line.mean);
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (event.key === "Escape") show(chart, null);
  if (event.key === "Home") fit(chart);
  if (event.key === "Home" || (steps && lines.length)) event.preventDefault();
  if (!steps || !lines.length) return;
  const start = chart.point || { line: lines[0], index: -steps[1] };
  const which = (Math.max(0, lines.indexOf(start.line)) + steps[0] + lines.length) % lines.length;
  const last = lines[which].y.length - 1;
  show(chart, { line: lines[which], index: Math.max(0, Math.min(last, start.index + steps[1])) });
}

// A section that is jumped to begins below the bar, however many rows of arms that has.
const bar = document.querySelector(".bar");
const clearBar = () => { root.style.scrollPaddingTop = bar.offsetHeight + "px"; };
clearBar();
new ResizeObserver(clearBar).observe(bar);

// `false` keeps the axes: otherwise they would be fitted to the data, without intervals and with
// hidden arms.
function refit() {
  state.charts.forEach((chart) => { show(chart, null); fit(chart); chart.plot.redraw(false); });
}

document.querySelectorAll("button[data-arm]").forEach((button) => {
  button.addEventListener("click", () => {
    const { arm } = button.dataset, hide = !state.hidden.has(arm);
    state.hidden[hide ? "add" : "delete"](arm);
    document.querySelectorAll("button[data-arm]").forEach((other) => {
      if (other.dataset.arm === arm) other.setAttribute("aria-pressed", String(!hide));
    });
    refit();
  });
});
document.querySelectorAll("button[data-seeds]").forEach((button) => {
  button.addEventListener("click", () => {
    state.seeds = !state.seeds;
    button.setAttribute("aria-pressed", String(state.seeds));
    refit();
  });
});
document.querySelectorAll("select[data-figure]").forEach((select) => {
  select.addEventListener("change", () => {
    const name = select.dataset.figure;
    document.querySelectorAll("select[data-figure]").forEach((other) => {
      if (other.dataset.figure === name) other.value = select.value;
    });
    figures.get(name).axes = [select.value, ...figures.get(name).axes.filter((axis) => axis !== select.value)];
    state.charts.forEach((chart) => { if (chart.figure.name === name) chart.axis = select.value; });
    refit();
  });
});

const films = read("films");
document.querySelectorAll("input[data-films]").forEach((slider) => {
  const images = [...document.querySelectorAll("img[data-film]")].filter((image) => image.dataset.set === slider.dataset.films);
  const times = [...new Set(images.flatMap((image) => films[image.dataset.film].map(([time]) => time)))].sort((a, b) => a - b);
  const output = slider.nextElementSibling;
  slider.max = String(Math.max(0, times.length - 1));
  const move = () => {
    const time = times[+slider.value];
    output.textContent = "iteration " + time;
    slider.setAttribute("aria-valuetext", output.textContent);
    images.forEach((image) => {
      const frames = films[image.dataset.film];
      const [iteration, source] = frames.filter(([other]) => other <= time).pop() || frames[0];
      image.src = source;
      image.previousElementSibling.lastElementChild.textContent = iteration === time ? "" : ", iteration " + iteration;
    });
  };
  slider.value = slider.max;
  slider.addEventListener("input", move);
  move();
});

// Charts are made when they come near the screen, and all of them before the page is printed.
function reveal(element) {
  watcher.unobserve(element);
  if (!element.querySelector("canvas")) makeChart(element);
}
const watcher = new IntersectionObserver((entries) => {
  entries.filter((entry) => entry.isIntersecting).forEach((entry) => reveal(entry.target));
}, { rootMargin: "600px" });
const everyChart = document.querySelectorAll(".chart");
everyChart.forEach((element) => watcher.observe(element));
addEventListener("beforeprint", () => everyChart.forEach(reveal));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  state.charts.forEach((chart) => chart.plot.redraw(false));
});
