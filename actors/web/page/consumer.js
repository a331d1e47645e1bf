// The view of one consumer of the stream: what it reads, how far it is, and what verify has found of a mirror's replica.

import { Board, Chart } from "./charts.js";
import { $, facts, make, put, rebuild } from "./dom.js";
import { ago, moment, short, whole } from "./format.js";
import { listJournal } from "./journal.js";
import { kindOf, readsTable } from "./readers.js";
import { linkTo } from "./router.js";
import { labelOf, state } from "./state.js";

const TABLES_MAX = 50;
const board = new Board();
new Chart($("consumer-chart"), {
  title: "Unread messages, since this page was opened", format: short, least: 4, board,
  series: [{ name: "unread", color: "lag", value: (p) => p[1] }],
});

let name = "", replica = "";

function verdictOf({ verified_at, mismatched_keys }, now) {
  if (mismatched_keys) return ["bad", `Different: ${whole.format(mismatched_keys)} keys differed when walbridge verify ran last.`];
  if (verified_at) return ["ok", `Equal to its source: walbridge verify compared all tables ${ago(verified_at, now)}, on ${moment(verified_at, now)}.`];
  return ["", "Not verified yet: walbridge verify --to URL compares both sides at one LSN."];
}

function update() {
  const { status, now } = state, all = [...state.consumers.values()];
  if (!status) return;
  // a mirror makes another consumer after an interruption: its replica is the same
  const one = state.consumers.get(name) ?? all.find((other) => replica && other.note.replica === replica);
  replica = one?.note.replica || replica;
  put($("consumer-title"), one ? kindOf(one) : name);
  $("consumer-missing").hidden = Boolean(one);
  $("consumer-section").hidden = !one;
  if (!one) return;
  const { note } = one, isMirror = note.kind === "mirror";
  rebuild($("consumer-facts"), [one.pending, one.unacknowledged, one.delivered_seq, one.acknowledged_seq, one.active_at, note, one.history_used], () => [facts(
    ["Consumer", one.name],
    ["Kind", isMirror ? "mirror, ordered, keeps its own place" : one.acknowledges ? "acknowledges messages" : "ordered, keeps its own place"],
    note.applied_seq !== null ? ["Applied up to", `message ${whole.format(note.applied_seq)}, as reported within the last seconds`] : null,
    ["Delivered up to", `message ${whole.format(one.delivered_seq)}${one.active_at ? `, ${ago(one.active_at, now)}` : ""}`],
    one.acknowledges ? ["Acknowledged up to", `message ${whole.format(one.acknowledged_seq)}; ${whole.format(one.unacknowledged)} delivered and open`] : null,
    ["Unread", `${whole.format(one.pending)} of ${whole.format(status.jetstream.messages)} messages of the stream`],
    one.created_at ? ["Created", moment(one.created_at, now)] : null,
    ["Reads", one.filters.length ? one.filters.join(", ") : "everything"])]);
  $("consumer-verdict").hidden = !isMirror;
  const [level, words] = verdictOf(note, now);
  $("consumer-verdict").className = `verdict ${level}`;
  put($("consumer-verdict"), words);
  board.showFrom(one.seen, state.board.seconds);
  const tables = [...state.tables.keys()].filter((token) => readsTable(one, token));
  const shown = tables.slice(0, TABLES_MAX);
  rebuild($("consumer-tables"), shown, () => shown.map((token) => make("li", {}, make("a", { href: linkTo("table", token) }, labelOf(token)))));
  put($("consumer-tables-count"), whole.format(tables.length));
  const mirror = note.replica && `mirror ${note.replica}`;
  $("consumer-log-section").hidden = !listJournal($("consumer-log"), (entry) => entry.consumer === name || (mirror && entry.text.startsWith(mirror)), 20);
}

export const consumer = {
  element: "view-consumer",
  title: () => $("consumer-title").textContent || name,
  show(part) {
    name = part;
    replica = "";
  },
  update,
};
