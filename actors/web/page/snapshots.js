// Snapshots: which run and wait, how the last ones ended, and requests for more.

import { ask } from "./access.js";
import { $, fixLine, make, rebuild, toast } from "./dom.js";
import { bytes, duration, short, whole } from "./format.js";
import { labelOf, state } from "./state.js";

const ORDER = { running: 0, waiting: 1, failed: 2, done: 2 };
const SHOWN_MAX = 25;

function snapshotItem(one, now) {
  const took = one.state === "running" ? now - one.started_at : one.seconds;
  const expected = one.state === "running" && one.rows_expected ? ` of about ${whole.format(Math.max(one.rows, one.rows_expected))}` : "";
  const figures = one.state === "waiting" ? "" : [
    `${whole.format(one.rows)}${expected} rows`, bytes(one.bytes), duration(took),
    took > 0 && one.rows ? `${short(Math.round(one.rows / took))} rows/s` : null,
  ].filter(Boolean).join(" · ");
  const item = make("li", {}, make("div", { className: "snapshot-head" },
    make("span", { className: "name" }, labelOf(one.table)),
    make("span", { className: `badge ${one.state}` }, one.state), make("span", { className: "figures" }, figures)));
  if (one.state === "running") {
    const fill = make("i"), meter = make("div", { className: `meter${one.rows_expected ? "" : " unknown"}`, role: "progressbar", "aria-label": `snapshot of ${one.table}` }, fill);
    if (one.rows_expected) {
      const percent = Math.min(99, Math.round((one.rows / one.rows_expected) * 100));
      fill.style.width = `${percent}%`;
      meter.setAttribute("aria-valuenow", percent);
    }
    item.append(meter);
  }
  if (one.error) item.append(make("p", { className: "error" }, one.error));
  if (one.fix) item.append(fixLine(one.fix));
  return item;
}

// Show the snapshots of one table, or of all
export function listSnapshots(host, status, now, token) {
  const list = status.snapshots.filter((one) => !token || one.table === token)
    .sort((a, b) => ORDER[a.state] - ORDER[b.state] || b.started_at - a.started_at).slice(0, SHOWN_MAX);
  rebuild(host, list, () => list.map((one) => snapshotItem(one, now)));
  return list.length;
}

export function showSnapshots(status, now) {
  $("snapshots-none").hidden = listSnapshots($("snapshots"), status, now) > 0;
}

export async function requestSnapshot(token, label) {
  try {
    if (await ask("POST", `snapshot/${token.split("/").map(encodeURIComponent).join("/")}`)) toast(`Snapshot of ${label} requested`);
  } catch (error) {
    toast(`Snapshot not requested: ${error.message}`);
  }
}

export function tokenOf(name) {
  return [...state.tables.values()].find((table) => table.label === name)?.token ?? name;
}

// Offer the tables' names in an input of its own list
export function offerTables() {
  const names = [...state.tables.values()].map((t) => t.label).sort().slice(0, 2000);
  $("table-names").replaceChildren(...names.map((value) => make("option", { value })));
}

$("snapshot-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const wanted = $("snapshot-table").value.trim();
  if (!wanted) return;
  requestSnapshot(tokenOf(wanted), wanted);
  $("snapshot-table").value = "";
});
$("snapshot-table").addEventListener("focus", offerTables);
