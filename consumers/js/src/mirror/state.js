/** The state that a replica stores about itself, in tables of its own: the same tables as those of `walbridge mirror`. */

import { UNKNOWN_MESSAGE } from "../contract/stream_view.js";
import { Fatal } from "../errors.js";
import { isOtherVersion } from "../rules/rows.js";
import { NEEDED_NOTHING } from "../rules/track.js";
import { encodeColumns } from "../stores/shapes.js";

/** @typedef {"waiting" | "live" | "stale" | "refused" | "unpublished"} State */

/**
 * The stored record of one table. `waiting`: does not exist yet. `live`: follows the checkpoint. `stale`: keeps its last rows
 * while a new copy is made. `refused`: cannot be copied here until the next start. `unpublished`: keeps its last rows until the
 * bridge publishes the table again.
 * @typedef {object} TableRecord
 * @property {string} token
 * @property {string} localSchema
 * @property {string} localName
 * @property {State} state
 * @property {string} reason Why the table is not live.
 * @property {string} sourceSchema
 * @property {string} sourceTable
 * @property {number} relationId
 * @property {string} columns
 * @property {number} keyed 0 after rows with equal keys were found: the local table has no key.
 * @property {string} snapshotId
 * @property {number} snapshotLsn
 * @property {number} neededSeq The stream sequence that a new snapshot must have reached.
 * @property {number} initSeq INIT sequence of the last snapshot used; the next one must be newer.
 * @property {string} version How the table was published when that snapshot was taken; empty when unknown.
 * @property {string} toldVersion How it is published as of `toldSeq`.
 * @property {number} toldSeq
 */

const FIELDS = /** @type {const} */ ([
  "token", "localSchema", "localName", "state", "reason", "sourceSchema", "sourceTable", "relationId", "columns", "keyed",
  "snapshotId", "snapshotLsn", "neededSeq", "initSeq", "version", "toldVersion", "toldSeq",
]);
const NUMBERS = new Set(["relationId", "keyed", "snapshotLsn", "neededSeq", "initSeq", "toldSeq"]);
/** @param {string} field */
const columnOf = (field) => field.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

/** @param {string} token @param {import("../stores/dialect.js").Local} local @returns {TableRecord} */
export const newTable = (token, [localSchema, localName]) => ({
  token, localSchema, localName, state: "waiting", reason: "", sourceSchema: "", sourceTable: "", relationId: 0, columns: "[]",
  keyed: 1, snapshotId: "", snapshotLsn: 0, neededSeq: 0, initSeq: 0, version: "", toldVersion: "", toldSeq: 0,
});

/** @param {TableRecord} record @returns {import("../stores/dialect.js").Local} */
export const localOf = (record) => [record.localSchema, record.localName];
/** Whether the store has a table of this name that a replica made. @param {TableRecord} record */
export const wasLive = (record) => record.snapshotId !== "";

/**
 * The record of a table that must be copied again. One that was never live stays waiting; refused and unpublished stay that.
 * @param {TableRecord} record @param {string} reason @param {number} neededSeq @param {boolean} [keyed] @returns {TableRecord}
 */
export function asStale(record, reason, neededSeq, keyed) {
  const needed = neededSeq === NEEDED_NOTHING
    ? { ...record, neededSeq: 0, toldVersion: "", toldSeq: 0 }
    : { ...record, neededSeq: Math.max(neededSeq, record.neededSeq) };
  if (record.state === "refused" || record.state === "unpublished") return needed;
  /** @type {TableRecord} */
  const changed = { ...needed, state: wasLive(record) ? "stale" : "waiting", reason };
  if (keyed === undefined || Number(keyed) === record.keyed) return changed;
  return { ...changed, keyed: Number(keyed), columns: "[]" }; // the existing table still has the key, so it cannot be refilled
}

/** @param {TableRecord} record @returns {TableRecord} */
export const asTakenUp = (record) => ({ ...record, state: wasLive(record) ? "stale" : "waiting", reason: "" });
/** @param {TableRecord} record @param {string} reason @returns {TableRecord} */
export const asRefused = (record, reason) => (record.state === "unpublished" ? record : { ...record, state: "refused", reason });
/** @param {TableRecord} record @param {string} reason @returns {TableRecord} */
export const asDelayed = (record, reason) => (record.state === "unpublished" ? record : { ...record, reason });
/** @param {TableRecord} record @param {string} reason @returns {TableRecord} */
export const asUnpublished = (record, reason) => ({ ...record, state: "unpublished", reason });

/** After the stream has told how the table is published, unless it has told something newer. @param {TableRecord} record @param {import("../rules/track.js").Told} told @returns {TableRecord} */
export function asTold(record, told) {
  if (told.seq <= record.toldSeq) return record;
  const known = { ...record, toldVersion: told.version, toldSeq: told.seq };
  if (!told.version) return asUnpublished(known, told.reason);
  return record.state === "unpublished" ? asTakenUp(known) : known;
}

/** Whether a snapshot leads to the table as it is published now. @param {TableRecord} record @param {string} version @param {number} streamSeq */
export const takes = (record, version, streamSeq) =>
  streamSeq >= record.toldSeq || !isOtherVersion(version, record.toldVersion);

/**
 * @param {TableRecord} record @param {import("../stores/shapes.js").TableShape} shape
 * @param {import("../contract/records.js").SnapshotStart} start @param {number} initSeq @returns {TableRecord}
 */
export const asLive = (record, shape, start, initSeq) => ({
  ...record, state: "live", reason: "", sourceSchema: shape.schema, sourceTable: shape.table, relationId: shape.relationId,
  columns: encodeColumns(shape.columns), snapshotId: start.snapshotId, snapshotLsn: start.snapshotLsn, initSeq,
  version: start.version,
});

/** @param {import("../stores/dialect.js").Dialect} dialect @param {TableRecord} record */
export const savedTable = (dialect, record) =>
  dialect.save("tables", "token", Object.fromEntries(FIELDS.map((field) => [columnOf(field), record[field]])));

/** @param {import("../stores/store.js").Store} store @returns {Promise<Map<string, TableRecord>>} */
export async function loadTables(store) {
  const rows = await store.query(`SELECT ${FIELDS.map(columnOf).join(", ")} FROM ${store.dialect.own("tables")} ORDER BY token`);
  const records = rows.map((row) =>
    /** @type {TableRecord} */ (Object.fromEntries(FIELDS.map((field, i) => [field, NUMBERS.has(field) ? Number(row[i]) : row[i]]))));
  return new Map(records.map((record) => [record.token, record]));
}

/** The statements that remove what is stored about a table; its rows stay. @param {import("../stores/dialect.js").Dialect} dialect @param {string} token */
export const forgetTable = (dialect, token) =>
  ["tables", "verified", "rounds"].map((name) => ({ sql: `DELETE FROM ${dialect.own(name)} WHERE token = ${dialect.parameter(1)}`, params: [[token]] }));

/** Up to where the live tables are complete, and in which stream. @typedef {{stream: string, created: string, cursor: import("../rules/track.js").Cursor, lastMessage: import("../contract/stream_view.js").LastMessage}} Checkpoint */

/** The place that the stream must still fit. @param {Checkpoint} checkpoint @returns {import("../contract/stream_view.js").Place} */
export const placeOf = ({ cursor, created, lastMessage }) => ({ seq: cursor.streamSeq, created, lastMessage });

/** @param {import("../stores/dialect.js").Dialect} dialect @param {Checkpoint} checkpoint */
export function firstCheckpoint(dialect, { stream, created, cursor, lastMessage }) {
  const [lsn, seq, place] = cursor.position;
  return dialect.save("position", "id", {
    id: 1, stream, created, stream_seq: cursor.streamSeq, lsn, seq, place, message_seq: lastMessage.seq, message_id: lastMessage.id,
  });
}

/** The statement that moves the checkpoint; it fails unless the stored one is `from`. @param {import("../stores/dialect.js").Dialect} dialect @param {Checkpoint} from @param {Checkpoint} to @returns {import("../stores/dialect.js").Statement} */
export function movedCheckpoint(dialect, from, to) {
  const names = ["stream_seq", "lsn", "seq", "place", "message_seq", "message_id"];
  const mark = (/** @type {number} */ i) => dialect.parameter(i);
  const sql =
    `UPDATE ${dialect.own("position")} SET ${names.map((name, i) => `${name} = ${mark(i + 1)}`).join(", ")}` +
    ` WHERE id = 1 AND stream_seq = ${mark(7)} AND lsn = ${mark(8)} AND seq = ${mark(9)}`;
  const [lsn, seq, place] = to.cursor.position;
  const old = from.cursor;
  const params = [to.cursor.streamSeq, lsn, seq, place, to.lastMessage.seq, to.lastMessage.id, old.streamSeq, old.position[0], old.position[1]];
  return { sql, params: [params], counted: true };
}

/** @param {import("../stores/dialect.js").Dialect} dialect */
export const forgetCheckpoint = (dialect) => ({ sql: `DELETE FROM ${dialect.own("position")}`, params: [[]] });

/** @param {import("../stores/store.js").Store} store @returns {Promise<Checkpoint | null>} */
export async function loadCheckpoint(store) {
  const [row] = await store.query(
    `SELECT stream, created, stream_seq, lsn, seq, place, message_seq, message_id FROM ${store.dialect.own("position")}`,
  );
  if (row === undefined) return null;
  const [stream, created, streamSeq, lsn, seq, place, messageSeq, id] = row;
  return {
    stream: String(stream), created: String(created),
    cursor: { streamSeq: Number(streamSeq), position: [Number(lsn), Number(seq), Number(place)] },
    lastMessage: messageSeq ? { seq: Number(messageSeq), id: String(id) } : UNKNOWN_MESSAGE,
  };
}

/** Of what a store holds about itself, here and in `walbridge mirror`: what earlier versions would misread gets the next number. */
const FORMAT = 1;

/** Throw Fatal if a later version has stored here what this one would misread. @param {import("../stores/store.js").Store} store */
export async function checkFormat(store) {
  const [row] = await store.query(`SELECT format FROM ${store.dialect.own("owner")}`);
  if (row !== undefined && Number(row[0]) > FORMAT) {
    throw new Fatal(`the store was made by a later version (format ${row[0]}; this version knows ${FORMAT}), and nothing was changed`, {
      code: "WB516", fix: "install that version here, or open a new store, which is copied",
    });
  }
}

/** Stores whether the replica keeps all tables that the bridge publishes. @param {import("../stores/dialect.js").Dialect} dialect @param {boolean} everything */
export const savedChoice = (dialect, everything) =>
  ({ sql: `UPDATE ${dialect.own("owner")} SET everything = ${dialect.parameter(1)} WHERE id = 1`, params: [[Number(everything)]] });
