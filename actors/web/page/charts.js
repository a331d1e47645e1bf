"use strict";
// Plots of the last minutes: hand-made SVG with axes, and one cursor for all plots, moved by pointer or arrow keys.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 58, right: 10, top: 8, bottom: 20 };

function svgElement(tag, attributes = {}) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Up to four round steps from 0 to at least `top`; powers of two for bytes
function ticksTo(top, bytes) {
  const base = bytes ? 2 ** Math.floor(Math.log2(top / 4)) : 10 ** Math.floor(Math.log10(top / 4));
  const step = (bytes ? [1, 2, 4] : [1, 2, 2.5, 5, 10]).map((n) => n * base).find((s) => s * 4 >= top) ?? base * 10;
  const found = [];
  for (let value = 0; value < top + step * 0.999; value += step) found.push(value);
  return found;
}

class Chart {
  // series: {name, color, value(point) -> number or null}; stacked series are drawn on top of each other
  constructor(host, { title, series, format, stacked = false, bytes = false, least = 1, board }) {
    Object.assign(this, { title, series, format, stacked, bytes, least, board, points: [], width: 0 });
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
    this.svg = svgElement("svg", { role: "img", tabindex: "0", height: "170" });
    this.figure.append(caption, this.svg);
    host.append(this.figure);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerdown", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => board.moveCursor(null));
    this.svg.addEventListener("blur", () => board.moveCursor(null));
    this.svg.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30 }[event.key];
      if (steps) board.stepCursor(steps);
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
    }).observe(this.svg);
  }

  x(time) {
    const { from, to } = this.board;
    return MARGIN.left + ((time - from) / (to - from)) * (this.width - MARGIN.left - MARGIN.right);
  }

  point(event) {
    const box = this.svg.getBoundingClientRect(), { from, to } = this.board;
    const inner = box.width - MARGIN.left - MARGIN.right;
    this.board.moveCursor(from + ((event.clientX - box.left - MARGIN.left) / inner) * (to - from));
  }

  draw() {
    const { width, svg, board } = this;
    if (width < 120) return;
    const height = 170, bottom = height - MARGIN.bottom;
    const points = board.visible;
    const rows = points.map((point) => this.series.map((one) => one.value(point)));
    const tops = rows.map((row) => (this.stacked ? row.reduce((sum, v) => sum + (v ?? 0), 0) : Math.max(...row.map((v) => v ?? 0))));
    const ticks = ticksTo(Math.max(this.least, ...tops), this.bytes), top = ticks[ticks.length - 1];
    const y = (value) => bottom - (value / top) * (bottom - MARGIN.top);
    const parts = [];
    for (const tick of ticks) {
      const at = Math.round(y(tick)) + 0.5;
      parts.push(svgElement("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }));
      const label = svgElement("text", { x: MARGIN.left - 7, y: at + 3.5, "text-anchor": "end" });
      label.textContent = this.format(tick);
      parts.push(label);
    }
    for (const { time, text } of board.timeTicks(width)) {
      const label = svgElement("text", { x: this.x(time), y: height - 5, "text-anchor": "middle" });
      label.textContent = text;
      parts.push(label);
    }
    parts.push(...(this.stacked ? this.stack(points, rows, y) : this.lines(points, rows, y)));
    this.cursor = svgElement("line", { class: "cursor", y1: MARGIN.top, y2: bottom, visibility: "hidden" });
    parts.push(this.cursor);
    svg.replaceChildren(...parts);
    this.readOut();
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
          parts.push(svgElement("path", { class: `area c-${one.color}`, d: `M${drawn[0][0].toFixed(1)},${y(0)}L${path}L${drawn[drawn.length - 1][0].toFixed(1)},${y(0)}Z` }));
        }
        const series = svgElement("path", { class: `series c-${one.color}`, d: `M${path}` });
        series.style.fill = "none";
        parts.push(series);
      }
    });
    return parts;
  }

  readOut() {
    const point = this.board.pointed ?? this.board.visible[this.board.visible.length - 1];
    if (this.cursor) {
      this.cursor.setAttribute("visibility", this.board.pointed ? "visible" : "hidden");
      if (this.board.pointed) {
        const at = this.x(point[0]).toFixed(1);
        this.cursor.setAttribute("x1", at);
        this.cursor.setAttribute("x2", at);
      }
    }
    const said = this.series.map((one, i) => {
      const value = point ? one.value(point) : null;
      this.keys[i].textContent = value === null ? "–" : this.format(value);
      return `${one.name} ${this.keys[i].textContent}`;
    });
    const when = this.board.pointed ? clock(point[0], true) : "now";
    this.svg.setAttribute("aria-label", `${this.title}, ${when}: ${said.join(", ")}. Arrow keys move through time.`);
  }
}

// The time axis and the cursor that all charts share
class Board {
  constructor() {
    Object.assign(this, { charts: [], points: [], visible: [], seconds: 300, from: 0, to: 1, at: null });
  }

  add(points, whole) {
    if (whole) this.points = [];
    this.points.push(...points);
    if (this.points.length > 900) this.points.splice(0, this.points.length - 900);
    this.refresh();
  }

  refresh() {
    const last = this.points[this.points.length - 1];
    if (!last) return;
    this.to = last[0];
    this.from = this.to - this.seconds;
    this.visible = this.points.filter((point) => point[0] >= this.from);
    if (!document.hidden) this.charts.forEach((chart) => chart.draw());
  }

  get pointed() {
    if (this.at === null || !this.visible.length) return null;
    return this.visible.reduce((best, p) => (Math.abs(p[0] - this.at) < Math.abs(best[0] - this.at) ? p : best));
  }

  moveCursor(time) {
    this.at = time;
    this.charts.forEach((chart) => chart.readOut());
  }

  stepCursor(steps) {
    const now = this.visible.indexOf(this.pointed ?? this.visible[this.visible.length - 1]);
    const next = this.visible[Math.max(0, Math.min(this.visible.length - 1, now + steps))];
    if (next) this.moveCursor(next[0]);
  }

  timeTicks(width) {
    const step = [10, 15, 30, 60, 120, 180, 300].find((s) => (this.seconds / s) * 78 < width - 70) ?? 300;
    const found = [];
    for (let time = Math.ceil((this.from + step * 0.12) / step) * step; time <= this.to - step * 0.12; time += step) {
      found.push({ time, text: clock(time, step < 60) });
    }
    return found;
  }
}

function clock(unixSeconds, seconds) {
  const options = { hour: "2-digit", minute: "2-digit", hour12: false };
  if (seconds) options.second = "2-digit";
  return new Date(unixSeconds * 1000).toLocaleTimeString("en-GB", options);
}
