// The plots of the overview, and the marks that what has happened leaves in them.

import { Chart } from "./charts.js";
import { $, put } from "./dom.js";
import { bytes, clock, duration, milliseconds, short } from "./format.js";
import { state } from "./state.js";

const { board } = state;
for (const chart of [
  {
    title: "Changes stored/s", stacked: true, format: short, least: 4,
    series: ["insert", "update", "delete", "other"].map((name, i) => ({ name, color: name, value: (p) => p[1 + i] })),
  },
  {
    title: "From commit to stored", format: milliseconds, least: 5,
    series: [{ name: "p50", color: "p50", value: (p) => p[5] }, { name: "p99", color: "p99", value: (p) => p[6] }],
  },
  { title: "Lag: age of the oldest unstored change", format: duration, seconds: true, series: [{ name: "lag", color: "lag", value: (p) => p[8] }] },
  {
    title: "WAL held in PostgreSQL", format: bytes, bytes: true, least: 1048576,
    series: [{ name: "held", color: "wal", value: (p) => p[9] }],
  },
]) {
  new Chart($("charts"), { ...chart, board });
}

$("ranges").addEventListener("click", (event) => {
  const chosen = event.target.closest("button");
  if (!chosen) return;
  for (const button of $("ranges").children) button.setAttribute("aria-pressed", String(button === chosen));
  board.seconds = Number(chosen.dataset.seconds);
  board.reset();
});
$("log-scale").addEventListener("click", () => {
  board.isLog = !board.isLog;
  $("log-scale").setAttribute("aria-pressed", String(board.isLog));
  board.refresh();
});
$("zoom-reset").addEventListener("click", () => {
  board.reset();
  $("charts").querySelector("svg").focus();  // the button is gone now
});
document.addEventListener("visibilitychange", () => board.refresh());

board.onChange = () => {
  $("zoom-reset").hidden = !board.range;
  if (board.range) put($("zoom-reset"), `${clock(board.from, true)} to ${clock(board.to, true)}: show all`);
  const near = board.nearMarks.map((mark) => `${clock(mark.time, true)} ${mark.text}`).join("   ");
  put($("marks-note"), near || "Drag to zoom, double-click to undo. Flags are entries of the log.");
};

let drawn = 0;

export function drawJournal(entries) {
  const last = entries[entries.length - 1]?.number ?? 0;
  if (last === drawn) return;
  drawn = last;
  board.marks = entries.map(({ at, level, text }) => ({ time: at, level, text }));
  board.bands = [];
  for (const { at, kind } of entries) {
    const open = board.bands.length && board.bands[board.bands.length - 1][1] === null;
    if (kind === "outage" && !open) board.bands.push([at, null]);
    else if (kind === "streaming" && open) board.bands[board.bands.length - 1][1] = at;
  }
}
