// Plots over time: hand-made SVG with axes, and one cursor and one range for all plots of a board.

import { clock } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 58, right: 10, top: 8, bottom: 20 };
const HEIGHT = 170, BOTTOM = HEIGHT - MARGIN.bottom;
const LEAST_SECONDS = 10;
const NEAR = 0.015;  // of the range: marks so close to the cursor are read out

function svgElement(tag, attributes = {}) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

const LONG_STEPS = [15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400];

// Up to four round steps from 0 to at least `top`; powers of two for bytes, minutes and hours for seconds
export function ticksTo(top, bytes, seconds) {
  const base = bytes ? 2 ** Math.floor(Math.log2(top / 4)) : 10 ** Math.floor(Math.log10(top / 4));
  let step = (bytes ? [1, 2, 4] : [1, 2, 2.5, 5, 10]).map((n) => n * base).find((s) => s * 4 >= top) ?? base * 10;
  if (seconds && top > 60 && top <= 345600) step = LONG_STEPS.find((s) => s * 4 >= top);
  const found = [];
  for (let value = 0; value < top + step * 0.999; value += step) found.push(value);
  return found;
}

// Powers that enclose what is there, at most six of them
export function logTicks(low, top, bytes) {
  const base = bytes ? 1024 : 10, power = (value, round) => round(Math.log(value) / Math.log(base) + (round === Math.ceil ? -1e-9 : 1e-9));
  const from = power(low, Math.floor), to = Math.max(from + 1, power(top, Math.ceil)), step = Math.ceil((to - from) / 5);
  const found = [];
  for (let at = from; at < to + step; at += step) found.push(base ** at);
  return found;
}

export class Chart {
  // series: {name, color, value(point) -> number or null}; stacked series are drawn on top of each other
  constructor(host, { title, series, format, stacked = false, bytes = false, seconds = false, least = 1, board }) {
    Object.assign(this, { title, series, format, stacked, bytes, seconds, least, board, width: 0 });
    this.figure = document.createElement("figure");
    this.figure.className = "chart card";
    const caption = document.createElement("figcaption");
    const name = document.createElement("b");
    name.textContent = title;
    caption.append(name);
    this.keys = series.map((one) => {
      const key = document.createElement("span"), line = document.createElement("i"), value = document.createElement("b");
      key.className = "key";
      line.className = `c-${one.color}`;
      key.append(line, `${one.name} `, value);
      caption.append(key);
      return value;
    });
    this.svg = svgElement("svg", { role: "img", "aria-label": title, tabindex: "0", height: String(HEIGHT) });
    this.figure.append(caption, this.svg);
    host.append(this.figure);
    board.charts.push(this);
    this.listen();
  }

  listen() {
    const { svg, board } = this;
    svg.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse" && event.button === 0) {
        this.dragged = this.timeAt(event);
        svg.setPointerCapture(event.pointerId);
      }
      board.moveCursor(this.timeAt(event));
    });
    svg.addEventListener("pointermove", (event) => board.moveCursor(this.timeAt(event), this.dragged));
    svg.addEventListener("pointerup", (event) => {
      if (this.dragged !== undefined) board.zoom(this.dragged, this.timeAt(event));
      this.dragged = undefined;
    });
    svg.addEventListener("pointercancel", () => (this.dragged = undefined));
    svg.addEventListener("pointerleave", () => board.moveCursor(null));
    svg.addEventListener("dblclick", () => board.reset());
    svg.addEventListener("blur", () => board.moveCursor(null));
    svg.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30 }[event.key];
      if (steps) board.stepCursor(steps);
      else if (event.key === "+" || event.key === "=") board.zoomBy(0.5);
      else if (event.key === "-") board.zoomBy(2);
      else if (event.key === "0") board.reset();
      else if (event.key === "Escape") board.moveCursor(null);
      else return;
      event.preventDefault();
    });
    new ResizeObserver((entries) => {
      const width = Math.round(entries[0].contentRect.width);
      if (width !== this.width) {
        this.width = width;
        this.draw();
      }
    }).observe(svg);
  }

  x(time) {
    const { from, to } = this.board;
    return MARGIN.left + ((time - from) / (to - from)) * (this.width - MARGIN.left - MARGIN.right);
  }

  timeAt(event) {
    const box = this.svg.getBoundingClientRect(), { from, to } = this.board;
    const inner = box.width - MARGIN.left - MARGIN.right;
    return Math.max(from, Math.min(to, from + ((event.clientX - box.left - MARGIN.left) / inner) * (to - from)));
  }

  draw() {
    const { width, svg, board } = this;
    if (width < 120) return;
    const points = board.visible, rows = points.map((point) => this.series.map((one) => one.value(point)));
    const isStack = this.stacked && !board.isLog;
    const tops = rows.map((row) => (isStack ? row.reduce((sum, v) => sum + (v ?? 0), 0) : Math.max(...row.map((v) => v ?? 0))));
    const { ticks, y } = this.scale(rows, Math.max(this.least, ...tops));
    const parts = this.bands();
    for (const tick of ticks) {
      const at = Math.round(y(tick)) + 0.5;
      parts.push(svgElement("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }));
      const label = svgElement("text", { x: MARGIN.left - 7, y: at + 3.5, "text-anchor": "end" });
      label.textContent = this.format(tick);
      parts.push(label);
    }
    for (const { time, text } of board.timeTicks(width)) {
      const label = svgElement("text", { x: this.x(time), y: HEIGHT - 5, "text-anchor": "middle" });
      label.textContent = text;
      parts.push(label);
    }
    parts.push(...(isStack ? this.stack(points, rows, y) : this.lines(points, rows, y)));
    for (const { time, level } of board.visibleMarks) {
      const at = this.x(time).toFixed(1);
      parts.push(svgElement("path", { class: `mark ${level}`, d: `M${at},${MARGIN.top}V${BOTTOM}` }));
      parts.push(svgElement("path", { class: `flag ${level}`, d: `M${at},${MARGIN.top + 6}l-4,-7h8Z` }));
    }
    this.chosen = svgElement("rect", { class: "chosen", y: MARGIN.top, height: BOTTOM - MARGIN.top, visibility: "hidden" });
    this.cursor = svgElement("line", { class: "cursor", y1: MARGIN.top, y2: BOTTOM, visibility: "hidden" });
    parts.push(this.chosen, this.cursor);
    svg.replaceChildren(...parts);
    this.readOut();
  }

  scale(rows, top) {
    const inner = BOTTOM - MARGIN.top;
    if (!this.board.isLog) {
      const ticks = ticksTo(top, this.bytes, this.seconds), end = ticks[ticks.length - 1];
      return { ticks, y: (value) => BOTTOM - (value / end) * inner };
    }
    const found = rows.flat().filter((value) => value > 0);
    const ticks = logTicks(Math.min(top, ...found), top, this.bytes), low = Math.log(ticks[0]), end = Math.log(ticks[ticks.length - 1]);
    const y = (value) => (value <= ticks[0] ? BOTTOM : BOTTOM - ((Math.log(value) - low) / (end - low)) * inner);  // 0 is at the bottom
    return { ticks, y };
  }

  bands() {
    return this.board.visibleBands.map(([from, to]) =>
      svgElement("rect", {
        class: "band", x: this.x(from).toFixed(1), width: Math.max(1, this.x(to) - this.x(from)).toFixed(1),
        y: MARGIN.top, height: BOTTOM - MARGIN.top,
      }));
  }

  stack(points, rows, y) {
    const floor = rows.map(() => 0), parts = [];
    this.series.forEach((one, i) => {
      const lower = points.map((p, n) => `${this.x(p[0]).toFixed(1)},${y(floor[n]).toFixed(1)}`);
      rows.forEach((row, n) => (floor[n] += row[i] ?? 0));
      const upper = points.map((p, n) => `${this.x(p[0]).toFixed(1)},${y(floor[n]).toFixed(1)}`);
      if (points.length > 1 && rows.some((row) => row[i])) {
        parts.push(svgElement("path", { class: `area solid c-${one.color}`, d: `M${upper.join("L")}L${lower.reverse().join("L")}Z` }));
      }
    });
    return parts;
  }

  lines(points, rows, y) {
    const parts = [];
    this.series.forEach((one, i) => {
      let run = [];
      const runs = [];
      rows.forEach((row, n) => {
        // a missing measurement is a gap, not a zero
        if (row[i] === null || (n && points[n][0] - points[n - 1][0] > 5)) {
          if (run.length) runs.push(run);
          run = [];
        }
        if (row[i] !== null) run.push([this.x(points[n][0]), y(row[i])]);
      });
      if (run.length) runs.push(run);
      for (const line of runs) {
        const drawn = line.length > 1 ? line : [line[0], [line[0][0] + 1.5, line[0][1]]];
        const path = drawn.map(([px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`).join("L");
        if (this.series.length === 1) {
          parts.push(svgElement("path", { class: `area c-${one.color}`, d: `M${drawn[0][0].toFixed(1)},${BOTTOM}L${path}L${drawn[drawn.length - 1][0].toFixed(1)},${BOTTOM}Z` }));
        }
        const series = svgElement("path", { class: `series c-${one.color}`, d: `M${path}` });
        series.style.fill = "none";
        parts.push(series);
      }
    });
    return parts;
  }

  readOut() {
    const { board } = this, point = board.pointed ?? board.visible[board.visible.length - 1];
    if (this.cursor) {
      this.cursor.setAttribute("visibility", board.pointed ? "visible" : "hidden");
      if (board.pointed) {
        const at = this.x(point[0]).toFixed(1);
        this.cursor.setAttribute("x1", at);
        this.cursor.setAttribute("x2", at);
      }
      const isChoosing = board.at !== null && board.chosenFrom !== undefined;
      this.chosen.setAttribute("visibility", isChoosing ? "visible" : "hidden");
      if (isChoosing) {
        const [left, right] = [board.chosenFrom, board.at].map((time) => this.x(time)).sort((a, b) => a - b);
        this.chosen.setAttribute("x", left);
        this.chosen.setAttribute("width", right - left);
      }
    }
    const said = this.series.map((one, i) => {
      const value = point ? one.value(point) : null;
      this.keys[i].textContent = value === null ? "–" : this.format(value);
      return `${one.name} ${this.keys[i].textContent}`;
    });
    const when = board.pointed ? clock(point[0], true) : "now";
    const marks = board.nearMarks.map((mark) => ` ${mark.text}.`).join("");
    this.svg.setAttribute("aria-label", `${this.title}, ${when}: ${said.join(", ")}.${marks} Arrow keys move through time, + and - zoom.`);
  }
}

// The time axis, the marks and the cursor that the charts of one board share
export class Board {
  constructor() {
    Object.assign(this, { charts: [], points: [], visible: [], marks: [], bands: [], seconds: 300, from: 0, to: 1 });
    Object.assign(this, { at: null, chosenFrom: undefined, range: null, isLog: false, onChange: () => {} });
  }

  add(points, whole) {
    if (whole) this.points = [];
    this.points.push(...points);
    if (this.points.length > 900) this.points.splice(0, this.points.length - 900);
  }

  refresh() {
    const last = this.points[this.points.length - 1];
    if (!last) return;
    if (this.range && this.range[1] < this.points[0][0]) this.range = null;  // it has passed out of memory
    [this.from, this.to] = this.range ?? [last[0] - this.seconds, last[0]];
    this.visible = this.points.filter((point) => point[0] >= this.from && point[0] <= this.to);
    if (!document.hidden) this.charts.forEach((chart) => chart.draw());
    this.onChange();
  }

  // Show the points of a reader that has seen only some of the range, at least a minute of it
  showFrom(points, seconds) {
    this.points = points;
    const seen = points.length ? points[points.length - 1][0] - points[0][0] : 0;
    this.seconds = Math.min(seconds, Math.max(60, seen));
    this.refresh();
  }

  // Show the time between two moments, in whatever order; a click is no range
  zoom(one, other) {
    this.chosenFrom = undefined;
    const [from, to] = [one, other].sort((a, b) => a - b);
    if (to - from < (this.to - this.from) * 0.02) return this.refresh();
    const middle = (from + to) / 2, half = Math.max(to - from, LEAST_SECONDS) / 2;
    this.range = [middle - half, middle + half];
    this.refresh();
  }

  zoomBy(factor) {
    const last = this.points[this.points.length - 1]?.[0] ?? 0, width = Math.min(900, Math.max(LEAST_SECONDS, (this.to - this.from) * factor));
    const at = this.at ?? (this.range ? (this.from + this.to) / 2 : this.to), share = (at - this.from) / (this.to - this.from);
    const to = Math.min(last, at + width * (1 - share));
    this.range = factor > 1 && width >= this.seconds ? null : [to - width, to];
    this.refresh();
  }

  reset() {
    this.range = null;
    this.refresh();
  }

  get visibleMarks() {
    return this.marks.filter((mark) => mark.time >= this.from && mark.time <= this.to);
  }

  get visibleBands() {
    return this.bands.map(([from, to]) => [Math.max(from, this.from), Math.min(to ?? this.to, this.to)]).filter(([from, to]) => to > from);
  }

  get nearMarks() {
    if (this.at === null) return [];
    return this.visibleMarks.filter((mark) => Math.abs(mark.time - this.at) < Math.max(1, (this.to - this.from) * NEAR));
  }

  get pointed() {
    if (this.at === null || !this.visible.length) return null;
    return this.visible.reduce((best, p) => (Math.abs(p[0] - this.at) < Math.abs(best[0] - this.at) ? p : best));
  }

  moveCursor(time, chosenFrom) {
    this.at = time;
    this.chosenFrom = chosenFrom;
    this.charts.forEach((chart) => chart.readOut());
    this.onChange();
  }

  stepCursor(steps) {
    const now = this.visible.indexOf(this.pointed ?? this.visible[this.visible.length - 1]);
    const next = this.visible[Math.max(0, Math.min(this.visible.length - 1, now + steps))];
    if (next) this.moveCursor(next[0]);
  }

  timeTicks(width) {
    const shown = this.to - this.from;
    const step = [1, 2, 5, 10, 15, 30, 60, 120, 180, 300].find((s) => (shown / s) * 78 < width - 70) ?? 300;
    const found = [];
    for (let time = Math.ceil((this.from + step * 0.12) / step) * step; time <= this.to - step * 0.12; time += step) {
      found.push({ time, text: clock(time, step < 60) });
    }
    return found;
  }
}
