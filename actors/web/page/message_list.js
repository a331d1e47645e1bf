// Messages of the stream as rows that open: what changed, the way from commit to readers, headers and body.

import { copy, make, rebuild } from "./dom.js";
import { bytes, duration, moment, whole } from "./format.js";
import { kindOf, placeAt } from "./readers.js";
import { linkTo } from "./router.js";
import { state } from "./state.js";

const VALUE_MAX = 60, WORD_MAX = 30, BRIEF_MAX = 4, EVENTS_MAX = 50, TEXT_MAX = 20000;

function text(value) {
  if (value === null) return "null";
  return typeof value === "string" ? value : JSON.stringify(value);
}

function cut(value, most) {
  return value.length > most ? `${value.slice(0, most)}… (${whole.format(value.length)} characters)` : value;
}

const shorten = (value) => (value.length > WORD_MAX ? `${value.slice(0, WORD_MAX - 1)}…` : value);
const tableOf = (event) => (event.schema && event.operation !== "SCHEMA" && event.schema !== "public" ? `${event.schema}.${event.table}` : event.table) ?? "";

// A few words on an event: its key first, then what changed
function brief(event) {
  const { data, key = [], old = {} } = event;
  if (!data) return event.reason ?? "";
  const changed = (name) => event.operation !== "UPDATE" || !(name in old) || text(old[name]) !== text(data[name]);
  const names = [...key.filter((name) => name in data), ...Object.keys(data).filter((name) => !key.includes(name) && data[name] !== null && changed(name))];
  const shown = names.slice(0, BRIEF_MAX + key.length).map((name) => `${name}=${shorten(text(data[name]))}`);
  return shown.join("  ") + (names.length > shown.length ? "  …" : "");
}

function valuesOf(event) {
  const { data = {}, old = {}, key = [], unchanged = [], omitted = [] } = event;
  const rows = [...new Set([...key, ...Object.keys(data), ...Object.keys(old), ...unchanged, ...omitted])].map((name) => {
    const value = unchanged.includes(name) ? "unchanged, not sent" : omitted.includes(name) ? "too large for a message"
      : name in data ? text(data[name]) : "";
    const cells = [make("td", { className: "name" }, name, key.includes(name) ? make("span", { className: "badge" }, "key") : ""),
      make("td", { className: "value" }, cut(value, TEXT_MAX))];
    if (name in old && text(old[name]) !== text(data[name])) cells[1].prepend(make("del", {}, cut(text(old[name]), VALUE_MAX)), " → ");
    return make("tr", {}, ...cells);
  });
  if (!rows.length) return null;
  return make("div", { className: "scroll" }, make("table", { className: "values" }, make("thead", {}, make("tr", {},
    make("th", { scope: "col" }, "Column"), make("th", { scope: "col" }, "Value"))), make("tbody", {}, ...rows)));
}

function step(isDone, title, ...words) {
  return make("li", { className: isDone ? "done" : "" }, make("b", {}, title), " ", ...words);
}

// The way of a change: committed, stored, and where each reader is with it
function showWay(list, message) {
  const committed = message.events.find((event) => event.commit_ts)?.commit_ts / 1e6;
  const readers = [...state.consumers.values()].map((one) => [one, placeAt(one, message)]).filter(([, place]) => place);
  const after = committed ? `, ${duration(Math.max(0, message.stored_at - committed))} later` : "";
  rebuild(list, readers.map(([one, place]) => [one.name, place.words]), () => [
    committed ? step(true, "Committed", moment(committed, state.now)) : null,
    step(true, "Stored", `${moment(message.stored_at, state.now)}${after}, as message ${whole.format(message.seq)}`),
    ...readers.map(([one, place]) =>
      step(place.is_done, place.is_done ? "Read" : "Waiting", make("a", { href: linkTo("consumer", one.name) }, kindOf(one)), `: ${place.words}`)),
    readers.length ? null : step(false, "Readers", "no consumer that is known here reads this subject"),
  ]);
}

function eventPart(event) {
  const facts = [`LSN ${lsnText(event.lsn)}`, event.seq !== undefined ? `change ${whole.format(event.seq)} of its transaction` : "",
    event.xid ? `xid ${event.xid}` : "", event.last ? "the transaction's last" : ""].filter(Boolean).join(" · ");
  const body = make("pre", {}, cut(JSON.stringify(event, null, 1), TEXT_MAX));
  return make("section", { className: "event" }, make("h3", {}, event.operation, " ", tableOf(event)),
    make("p", { className: "quiet" }, facts), valuesOf(event),
    make("details", {}, make("summary", {}, "Body as JSON"), body,
      make("button", { type: "button", className: "small", onclick: () => copy(body) }, "Copy")));
}

export function lsnText(lsn) {
  if (lsn === undefined) return "unknown";
  const n = BigInt(lsn);
  return `${(n >> 32n).toString(16).toUpperCase()}/${(n & 0xffffffffn).toString(16).toUpperCase()}`;
}

function detailsOf(message) {
  const { events, headers } = message, shown = events.slice(0, EVENTS_MAX);
  const names = Object.entries(headers).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
  return [message.problem ? make("p", { className: "error" }, message.problem) : null, ...shown.map(eventPart),
    events.length > shown.length ? make("p", { className: "quiet" }, `and ${whole.format(events.length - shown.length)} more events in this message`) : null,
    make("h3", {}, "Message"),
    make("dl", { className: "facts" }, make("dt", {}, "Subject"), make("dd", {}, message.subject),
      make("dt", {}, "Size"), make("dd", {}, `${bytes(message.bytes)}${message.is_compressed ? ", compressed" : ""}`), ...names),
    make("p", {}, make("a", { href: linkTo("messages", "", { from: message.seq }) }, "Link to this message"), " · ",
      events[0]?.lsn !== undefined ? make("a", { href: linkTo("messages", "", { from: lsnText(events[0].lsn) }) }, "its transaction") : ""),
  ].filter(Boolean);
}

function messageRow(message) {
  const [first] = message.events, operation = first?.operation ?? message.subject.split(".").pop().toUpperCase();
  const inside = make("div", { className: "inside" });
  const more = message.events.length > 1 ? make("span", { className: "badge" }, `${whole.format(message.events.length)} events`) : null;
  const row = make("details", { className: "message" }, make("summary", {},
    make("span", { className: "seq number" }, whole.format(message.seq)),
    make("time", {}, moment(message.stored_at, state.now)),
    make("span", { className: `operation ${operation.toLowerCase()}` }, operation),
    make("span", { className: "table-name" }, first ? tableOf(first) : message.subject), more,
    make("span", { className: "brief" }, message.problem || (first ? brief(first) : ""))), inside);
  row.addEventListener("toggle", () => {
    if (!row.open) return inside.replaceChildren();  // many of them opened once would fill the page
    const list = make("ol", { className: "way" });
    row.follow = () => showWay(list, message);
    row.follow();
    inside.replaceChildren(list, ...detailsOf(message));
  });
  return row;
}

export function addMessages(host, messages, { fresh, open = false }) {
  const rows = messages.map(messageRow);
  if (fresh) host.replaceChildren(...rows);
  else host.append(...rows);
  if (open && rows.length) rows[0].open = true;
}

// Keep the ways of opened messages current
export function followMessages(host) {
  for (const row of host.querySelectorAll("details.message[open]")) row.follow?.();
}
