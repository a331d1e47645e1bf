// The list of all tables: searched, sorted, shown in parts, so that a thousand of them cost little.

import { $, make, put } from "./dom.js";
import { ago, count, whole } from "./format.js";
import { linkTo } from "./router.js";
import { requestSnapshot } from "./snapshots.js";
import { OPERATIONS, clockNow, state } from "./state.js";

const ROWS = 25;
const LONG_MS = 2900;  // the order changes this often, and never under the pointer

let sorting = { by: "rate", down: true }, limit = ROWS, ordered = [], lastOrdered = 0;
let rowsMade = new WeakMap();

function order() {
  const { tables } = state, suspended = state.status?.suspended_tables ?? {};
  const wanted = $("search").value.trim().toLowerCase();
  const key = {
    name: (t) => t.label.toLowerCase(), rate: (t) => t.rate, total: (t) => t.total, changed: (t) => t.changed,
    ...Object.fromEntries(OPERATIONS.map((operation, i) => [operation, (t) => t.counts[i]])),
  }[sorting.by];
  ordered = [...tables.values()].filter((t) => !wanted || t.label.toLowerCase().includes(wanted) || t.token.toLowerCase().includes(wanted));
  const sign = sorting.down ? -1 : 1;
  ordered.sort((a, b) => {
    const first = (b.token in suspended) - (a.token in suspended);  // suspended tables need a person, so they come first
    if (first) return first;
    const x = key(a), y = key(b);
    if (x !== y) return x < y ? -sign : sign;
    return a.total !== b.total ? b.total - a.total : a.label < b.label ? -1 : 1;
  });
  lastOrdered = Date.now();
}

function rowOf(table) {
  if (rowsMade.has(table)) return rowsMade.get(table);
  const cells = { rate: make("td", { className: "number" }), total: make("td", { className: "number" }), changed: make("td", { className: "number middling" }) };
  for (const operation of OPERATIONS) cells[operation] = make("td", { className: "number wide" });
  const badge = make("span", { className: "badge failed", hidden: true }, "suspended");
  const link = make("a", { href: linkTo("table", table.token) });
  if (table.schema !== "public") link.append(make("span", { className: "schema" }, `${table.schema}.`));
  link.append(table.name);
  const button = make("button", { type: "button", className: "small", onclick: () => requestSnapshot(table.token, table.label) }, "Snapshot");
  button.setAttribute("aria-label", `Request a snapshot of ${table.label}`);
  const tr = make("tr", {}, make("td", { className: "name" }, link, " ", badge), cells.rate, cells.total,
    ...OPERATIONS.map((o) => cells[o]), cells.changed, make("td", { className: "act" }, button));
  const row = { tr, cells, badge, button };
  rowsMade.set(table, row);
  return row;
}

export function showTables(now) {
  const { tables } = state, suspended = state.status?.suspended_tables ?? {};
  const body = $("table-rows");
  const busy = body.matches(":hover") || body.contains(document.activeElement);
  if (state.isFresh || ordered.length === 0 || (!busy && Date.now() - lastOrdered > LONG_MS)) order();
  const page = ordered.slice(0, limit);
  const rows = page.map((table) => {
    const { tr, cells, badge, button } = rowOf(table);
    put(cells.rate, table.rate < 0.05 ? "0" : count(table.rate));
    put(cells.total, whole.format(table.total));
    OPERATIONS.forEach((operation, i) => put(cells[operation], whole.format(table.counts[i])));
    put(cells.changed, table.changed ? ago(table.changed, now) : "–");
    badge.hidden = !(table.token in suspended);
    badge.title = suspended[table.token]?.what ?? "";
    button.disabled = state.posts === "closed";
    return tr;
  });
  if (rows.length !== body.children.length || rows.some((row, i) => body.children[i] !== row)) body.replaceChildren(...rows);
  const left = ordered.length - page.length;
  $("more").hidden = left <= 0;
  if (left > 0) put($("more"), `Show ${Math.min(ROWS, left)} more of ${whole.format(left)}`);
  put($("tables-count"), ordered.length === tables.size ? whole.format(tables.size) : `${whole.format(ordered.length)} of ${whole.format(tables.size)}`);
  $("tables-none").hidden = rows.length > 0;
  put($("tables-none"), tables.size ? "No matching table." : "No published table yet.");
}

function again() {
  order();
  showTables(clockNow());
}

$("search").addEventListener("input", () => {
  limit = ROWS;
  again();
});
$("more").addEventListener("click", () => {
  limit += ROWS;
  showTables(clockNow());
});
document.querySelector("#tables thead").addEventListener("click", (event) => {
  const by = event.target.closest("button")?.dataset.sort;
  if (!by) return;
  sorting = { by, down: sorting.by === by ? !sorting.down : by !== "name" };
  for (const button of document.querySelectorAll("#tables th button")) {
    button.parentElement.setAttribute("aria-sort", button.dataset.sort !== by ? "none" : sorting.down ? "descending" : "ascending");
  }
  again();
});
