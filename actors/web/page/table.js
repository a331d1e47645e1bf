// The view of one table: its changes, its shape, its snapshots, who reads it, and its newest messages.

import { ask, lacksToken, whyNoRows } from "./access.js";
import { Board, Chart } from "./charts.js";
import { $, make, put, rebuild } from "./dom.js";
import { ago, count, short, whole } from "./format.js";
import { listJournal } from "./journal.js";
import { addMessages, followMessages } from "./message_list.js";
import { askMessages } from "./messages.js";
import { problemCard } from "./problems.js";
import { kindOf, readsTable } from "./readers.js";
import { linkTo } from "./router.js";
import { listSnapshots, requestSnapshot } from "./snapshots.js";
import { OPERATIONS, labelOf, state } from "./state.js";

const NEWEST = 10;
const board = new Board();
new Chart($("table-chart"), {
  title: "Changes stored/s, since this page was opened", stacked: true, format: short, least: 4, board,
  series: ["insert", "update", "delete", "other"].map((name, i) => ({ name, color: name, value: (p) => p[1 + i] })),
});

let token = "", isWanted = false;

// The table's rates at the times of the overview's points: counts are sent only when they change
function rates(seen) {
  const points = [];
  let at = 0;
  for (const [time] of state.board.points) {
    if (time < seen[0][0]) continue;
    const before = at;
    while (at + 1 < seen.length && seen[at + 1][0] <= time + 0.5) at += 1;
    const elapsed = points.length ? Math.max(0.5, time - points[points.length - 1][0]) : 1;
    points.push([time, ...OPERATIONS.map((_, i) => Math.max(0, seen[at][1 + i] - seen[before][1 + i]) / elapsed)]);
  }
  return points;
}

async function load() {
  isWanted = false;
  const wanted = token;
  try {
    const schema = await ask("GET", `schema/${wanted.split("/").map(encodeURIComponent).join("/")}`).catch(() => ({}));
    if (schema && wanted === token) showColumns(schema.columns ?? []);
    const found = await askMessages({ table: wanted, limit: NEWEST });
    if (wanted !== token) return;
    if (!found) return put($("table-messages-state"), "The bridge's token is needed to see rows.");
    addMessages($("table-messages"), found.messages, { fresh: true });
    put($("table-messages-state"), found.messages.length ? "" : "None found in the newest part of the stream.");
  } catch (error) {
    if (wanted === token) put($("table-messages-state"), error.message);
  }
}

function showColumns(columns) {
  $("table-columns").replaceChildren(...columns.map((column) => make("tr", {},
    make("td", { className: "name" }, column.name, " ", column.pk ? make("span", { className: "badge" }, "key") : ""),
    make("td", {}, column.data_type ?? ""), make("td", { className: "wide" }, column.is_nullable === false ? "not null" : ""))));
  $("table-columns-section").hidden = !columns.length;
}

function showFigures(found, status, now) {
  const suspended = status.suspended_tables[token];
  $("table-missing").hidden = Boolean(found);
  put($("table-missing"), `The bridge publishes no table ${token}.`);
  const figures = found ? [["Changes/s", count(found.rate < 0.05 ? 0 : found.rate)], ["Total", whole.format(found.total)],
    ...OPERATIONS.map((operation, i) => [`${operation[0].toUpperCase()}${operation.slice(1)}s`, whole.format(found.counts[i])]),
    ["Last change", found.changed ? ago(found.changed, now) : "none yet"]] : [];
  rebuild($("table-tiles"), figures, () => figures.map(([name, value]) => make("div", { className: "tile" }, make("span", {}, name), make("b", {}, value))));
  rebuild($("table-problems"), [suspended ?? null], () => (suspended ? [problemCard(suspended, now)] : []));
}

function update() {
  const { status, now } = state, found = state.tables.get(token);
  if (!status) return;
  put($("table-title"), labelOf(token));
  showFigures(found, status, now);
  board.showFrom(found?.seen.length ? rates(found.seen) : [], state.board.seconds);
  $("table-snapshots-none").hidden = listSnapshots($("table-snapshots"), status, now, token) > 0;
  $("table-snapshot").disabled = state.posts === "closed";
  const readers = [...state.consumers.values()].filter((one) => readsTable(one, token));
  $("table-readers-section").hidden = !readers.length;
  rebuild($("table-readers"), readers.map((one) => [one.name, one.pending]), () => readers.map((one) =>
    make("li", {}, make("a", { href: linkTo("consumer", one.name) }, kindOf(one)), `: ${whole.format(one.pending)} unread`)));
  $("table-log-section").hidden = !listJournal($("table-log"), (entry) => entry.table === token, 20);
  const why = whyNoRows() || (isWanted && lacksToken() ? "The bridge's token is needed to see rows." : "");
  if (why) put($("table-messages-state"), why);
  else if (isWanted) load();
  $("table-rows-button").hidden = !(isWanted && lacksToken()) || Boolean(whyNoRows());
  followMessages($("table-messages"));
}

$("table-snapshot").addEventListener("click", () => requestSnapshot(token, labelOf(token)));
$("table-rows-button").addEventListener("click", load);

export const table = {
  element: "view-table",
  title: () => labelOf(token),
  show(part) {
    token = part;
    $("table-messages").replaceChildren();
    showColumns([]);
    put($("table-messages-state"), "");
    $("table-all").href = linkTo("messages", "", { table: token });
    isWanted = true;
  },
  update,
  hide() {
    token = "";
    $("table-messages").replaceChildren();
  },
};
