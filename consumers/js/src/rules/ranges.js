/**
 * The rule for a snapshot in rounds, as plain functions of records. Each chunk is what the table holds at its own LSN and comes
 * right after the event `streamSeq`. In between, a copy has rows of some ranges and not of others, so an event of a row that is not
 * there says nothing: a chunk to come has what the event did. No key is ever compared with another but for equality.
 */

import { NamesNoRow } from "./rows.js";

/** @typedef {import("../contract/records.js").Row} Row */

/**
 * What a change does to a copy that may lack any row. `oldKey`: the row to find; null for a new row, which is written whether or not
 * its key is there. `row`: the columns to write; null when the row is removed. `missing`: columns that the row lacks if it was not
 * there before. `unknown`: columns whose values are unknown even if it was: they were too large for a message. `isMoved`: the key
 * changes, and a row that is not there is written under the new one.
 * @typedef {{oldKey: Row | null, row: Row | null, missing: string[], unknown: string[], isMoved: boolean}} Effect
 */

/** @param {Row} row @param {readonly string[]} key @returns {Row} */
function keyOfRow(row, key) {
  if (!key.every((name) => Object.hasOwn(row, name))) throw new NamesNoRow("a change lacks values of its key");
  return Object.fromEntries(key.map((name) => [name, row[name]]));
}

/** @param {Row} one @param {Row} other */
const isSameKey = (one, other) => Object.keys(one).every((name) => written(one[name]) === written(other[name]));
/** @param {unknown} value */
const written = (value) => (value instanceof Uint8Array ? value.join() : typeof value === "object" ? JSON.stringify(value) : String(value));

/** What a change does to rows that are kept under the columns `key`. Throws NamesNoRow. @param {import("../contract/records.js").Change} change @param {readonly string[]} key @returns {Effect} */
export function effectOf(change, key) {
  if (change.kind === "delete") return { oldKey: keyOfRow(change.row, key), row: null, missing: [], unknown: [], isMoved: false };
  const unknown = [...change.omitted];
  const missing = [...new Set([...change.unchanged, ...unknown])];
  if (change.kind === "insert") return { oldKey: null, row: change.row, missing, unknown, isMoved: false };
  const now = keyOfRow(change.row, key);
  const oldKey = change.old === null ? now : keyOfRow(change.old, key);
  return { oldKey, row: change.row, missing, unknown, isMoved: !isSameKey(oldKey, now) };
}
