// Snapshots: which run and wait, how the last ones ended, and requests for more.

import { ask } from "./access.js";
import { $, fixLine, make, rebuild, toast } from "./dom.js";
import { bytes, duration, short, whole } from "./format.js";
import { labelOf, state } from "./state.js";

const ORDER = { running: 0, waiting: 1, failed: 2, done: 2 };
const SHOWN_MAX = 25;

// What a running snapshot has left and what it costs PostgreSQL, and the button that ends it
function runningLine(one, now) {
  const rate = one.rows / Math.max(now - one.started_at, 0.1), left = one.rows_expected - one.rows;
  const words = [
    left > 0 && rate >= 1 ? `about ${duration(left / rate)} left` : null,
    one.rounds > 1 ? `round ${whole.format(one.rounds)}` : null,
    one.transaction_since ? `holds back VACUUM for ${duration(Math.max(0, now - one.transaction_since))}` : "holds back no VACUUM now",
  ].filter(Boolean).join(" · ");
  const line = make("p", { className: "running-line" }, make("span", {}, words));
  if (one.snapshot_id) {
    const button = make("button", {
      type: "button", className: "small", disabled: state.posts === "closed", onclick: () => cancelSnapshot(one.snapshot_id, labelOf(one.table)),
    }, "Cancel");
    button.setAttribute("aria-label", `Cancel the snapshot of ${labelOf(one.table)}`);
    line.append(button);
  }
  return line;
}

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
  if (one.state === "running") item.append(runningLine(one, now));
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
  const rate = $("snapshot-rate");
  if (document.activeElement !== rate) rate.value = status.snapshot_rate_mb_s || "";
  $("snapshot-rate-submit").disabled = state.posts === "closed";
  $("snapshots-none").hidden = listSnapshots($("snapshots"), status, now) > 0;
}

export async function requestSnapshot(token, label, inRounds = false) {
  try {
    const path = `snapshot/${token.split("/").map(encodeURIComponent).join("/")}${inRounds ? "?rounds=yes" : ""}`;
    if (await ask("POST", path)) toast(`Snapshot of ${label} requested`);
  } catch (error) {
    toast(`Snapshot not requested: ${error.message}`);
  }
}

async function cancelSnapshot(id, label) {
  try {
    if (await ask("POST", `snapshot-cancel/${encodeURIComponent(id)}`)) toast(`The snapshot of ${label} ends`);
  } catch (error) {
    toast(`Snapshot not cancelled: ${error.message}`);
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
  requestSnapshot(tokenOf(wanted), wanted, $("snapshot-rounds").checked);
  $("snapshot-table").value = "";
});
$("snapshot-rate-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const rate = Number($("snapshot-rate").value || 0);
  $("snapshot-rate").blur();
  try {
    if (await ask("POST", `snapshot-rate/${rate}`)) toast(rate ? `Snapshots may send ${rate} MB/s` : "The rate of snapshots has no limit");
  } catch (error) {
    toast(`Rate not changed: ${error.message}`);
  }
});
$("snapshot-table").addEventListener("focus", offerTables);
