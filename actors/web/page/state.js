// What the bridge has told this page so far; the views read it.

import { Board } from "./charts.js";

export const OPERATIONS = ["insert", "update", "delete", "truncate"];
const KEPT_MAX = 900, ENTRIES_MAX = 500;

export const state = {
  status: null,
  now: 0,
  posts: "closed",  // whether a POST is open, wants the token, or is closed
  reads: "closed",  // the same of requests for rows; or off
  point: undefined,
  isFresh: false,  // whether the last frame had everything, not only what changed
  tables: new Map(),  // by token
  consumers: new Map(),  // by name
  journal: [],  // what has happened, the oldest first
  board: new Board(),  // the time axis and the points of the overview's plots
};

let offset = 0;
export const clockNow = () => Date.now() / 1000 + offset;
export const labelOf = (token) => state.tables.get(token)?.label ?? token;

export function take(frame) {
  const { status, now } = frame, elapsed = Math.max(0.2, now - state.now);
  offset = now - Date.now() / 1000;
  Object.assign(state, { status, now, posts: frame.posts, reads: frame.reads, isFresh: frame.whole });
  takeJournal(frame.journal.map(([number, at, kind, level, text, table, consumer]) => ({ number, at, kind, level, text, table, consumer })));
  takeTables(frame.tables, now, elapsed);
  takeConsumers(status.consumers, now);
  state.board.add(frame.points, frame.whole);
  state.point = state.board.points[state.board.points.length - 1];
}

function takeJournal(entries) {
  if (state.isFresh) state.journal = [];
  const last = state.journal[state.journal.length - 1]?.number ?? 0;
  state.journal.push(...entries.filter((entry) => entry.number > last));
  if (state.journal.length > ENTRIES_MAX) state.journal.splice(0, state.journal.length - ENTRIES_MAX);
}

function takeTables(rows, now, elapsed) {
  const { tables, isFresh } = state;
  if (isFresh) tables.clear();
  for (const table of tables.values()) table.rate = table.rate < 0.05 ? 0 : table.rate * 0.6;
  for (const [token, schema, name, ...rest] of rows) {
    const counts = rest.slice(0, 4), total = counts.reduce((a, b) => a + b, 0), known = tables.get(token);
    if (known) {
      known.rate += (0.4 * Math.max(0, total - known.total)) / elapsed;
      Object.assign(known, { counts, total, changed: rest[4] });
    } else {
      const label = schema === "public" ? name : `${schema}.${name}`;
      tables.set(token, { token, schema, name, label, counts, total, rate: 0, changed: rest[4], seen: [] });
    }
    keep(tables.get(token).seen, [now, ...counts]);
  }
}

function takeConsumers(list, now) {
  const names = new Set(list.map((one) => one.name));
  for (const name of state.consumers.keys()) if (!names.has(name)) state.consumers.delete(name);
  for (const one of list) {
    const known = state.consumers.get(one.name) ?? { seen: [] };
    keep(known.seen, [now, one.pending]);
    state.consumers.set(one.name, Object.assign(known, one));
  }
}

function keep(list, point) {
  list.push(point);
  if (list.length > KEPT_MAX) list.splice(0, list.length - KEPT_MAX);
}
