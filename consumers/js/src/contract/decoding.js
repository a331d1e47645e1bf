/** Decodes message bodies to records: MessagePack or JSON, packed or not. A compressed body must be unpacked first. */

import { decode } from "@msgpack/msgpack";

import { ReplicaError } from "../errors.js";
import { nestedOrNull } from "./exact_json.js";
import { Raw } from "./records.js";
import { BRIDGE_TOKEN, CDC, parseInit, splitSuffix } from "./subjects.js";

/** A message that no bridge wrote, or that was damaged. */
export class MalformedMessage extends ReplicaError {}

/** Stands for the key `__proto__`, which no plain object should get from outside. */
export const PROTO = "\u0000__proto__";
const text = new TextDecoder();
const OPTIONS = { useBigInt64: true, mapKeyConverter: (/** @type {unknown} */ key) => (key === "__proto__" ? PROTO : String(key)) };

/** MessagePack or JSON: the first byte says which. Integers beyond 32 bits may be BigInts. @param {Uint8Array} body @returns {any} */
export function decodeBody(body) {
  try {
    return body[0] === 0x7b || body[0] === 0x5b ? JSON.parse(text.decode(body)) : decode(body, OPTIONS);
  } catch (error) {
    throw new MalformedMessage(`neither MessagePack nor JSON: ${error}`);
  }
}

/** @param {boolean} condition @param {string} what @returns {asserts condition} */
function must(condition, what) {
  if (!condition) throw new MalformedMessage(`not a message of a bridge: ${what}`);
}

/** @param {unknown} value @param {string} what */
function str(value, what) {
  must(typeof value === "string", what);
  return value;
}

/** @param {unknown} value @param {string} what */
function int(value, what) {
  const number = typeof value === "bigint" ? Number(value) : value;
  must(typeof number === "number" && Number.isSafeInteger(number), what);
  return number;
}

/** @param {unknown} value @param {string} what @returns {string[]} */
function texts(value, what) {
  if (value === undefined) return [];
  must(Array.isArray(value) && value.every((one) => typeof one === "string"), what);
  return value;
}

/** @param {unknown} value @param {string} what @returns {Record<string, unknown>} */
function map(value, what) {
  must(typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Uint8Array), what);
  return /** @type {Record<string, unknown>} */ (value);
}

/** @param {unknown} value @param {"type" | "data_type"} type @returns {import("./records.js").Column[]} */
function columnsOf(value, type) {
  must(Array.isArray(value), "columns");
  return value.map((one) => {
    const pk = one?.pk ?? null;
    must(pk === null || typeof pk === "boolean", "pk");
    return { name: str(one?.name, "name"), type: str(one?.[type], type), pk, base: str(one.base_type ?? "", "base_type") };
  });
}

/** @param {Record<string, unknown>} row @param {string[]} raw */
function mark(row, raw) {
  for (const name of raw) if (Object.hasOwn(row, name)) row[name] = new Raw(String(row[name])); // one that was too large is absent
  return row;
}

const KINDS = /** @type {const} */ ({
  INSERT: "insert", UPDATE: "update", DELETE: "delete", TRUNCATE: "truncate", SCHEMA: "schema", GAP: "gap", PUBLISHED: "published",
});

/** One event of the CDC stream. @param {any} body @returns {import("./records.js").Event} */
export function decodeEvent(body) {
  map(body, "an event");
  must(typeof body.operation === "string" && Object.hasOwn(KINDS, body.operation), "operation");
  const kind = KINDS[/** @type {"INSERT"} */ (body.operation)];
  const last = body.last ?? false;
  must(typeof last === "boolean", "last");
  if (/** @type {string} */ (kind) === "gap") {
    const [, lsn, seq, rest] = /^([0-9a-f]{1,16})-([0-9]+)-(.*)$/.exec(str(body.msg_id, "msg_id")) ?? [];
    must(lsn !== undefined, "msg_id");
    return {
      kind: "gap", lsn: parseInt(lsn, 16), seq: Number(seq), last, reason: str(body.reason, "reason"),
      fromLsn: int(body.from_lsn, "from_lsn"), toLsn: int(body.to_lsn, "to_lsn"), tables: texts(body.tables, "tables"),
      ofTable: rest.slice(0, rest.lastIndexOf("-")) !== BRIDGE_TOKEN,
    };
  }
  const place = { lsn: int(body.lsn, "lsn"), seq: int(body.seq, "seq"), last };
  const table = str(body.table, "table");
  if (/** @type {string} */ (kind) === "published") {
    return {
      kind: "published", ...place, token: table, change: str(body.change, "change"), version: str(body.version, "version"),
      reason: str(body.reason, "reason"),
    };
  }
  if (/** @type {string} */ (kind) === "schema") {
    const token = /^[0-9a-f]+-[0-9]+-(.+)-schema$/.exec(str(body.msg_id, "msg_id"))?.[1];
    must(token !== undefined, "msg_id");
    const relationId = int(body.relation_id, "relation_id");
    return { kind: "schema", token, table, ...place, relationId, columns: columnsOf(body.columns, "data_type") };
  }
  const token = /^cdc\.([^.]+)\.[a-z]+$/.exec(str(body.subject, "subject"))?.[1];
  must(token !== undefined, "subject");
  const head = { token, schema: str(body.schema, "schema"), table, ...place, commitUs: int(body.commit_ts, "commit_ts") };
  if (/** @type {string} */ (kind) === "truncate") return { kind: "truncate", ...head };
  const key = texts(body.key, "key");
  let row = map(body.data, "data");
  if (kind === /** @type {string} */ ("delete")) { // the nulls of the other columns are no values
    row = Object.fromEntries(key.filter((name) => Object.hasOwn(row, name)).map((name) => [name, row[name]]));
  }
  const old = body.old === undefined || body.old === null ? null : mark(map(body.old, "old"), texts(body.old_raw, "old_raw"));
  return {
    kind, ...head, key, row: mark(row, texts(body.raw, "raw")), omitted: texts(body.omitted, "omitted"), old,
    unchanged: texts(body.unchanged, "unchanged"),
  };
}

/** The events of one unpacked body of the CDC stream. @param {Uint8Array} body */
export function decodeEvents(body) {
  const decoded = decodeBody(body);
  return Array.isArray(decoded) ? decoded.map(decodeEvent) : [decodeEvent(decoded)];
}

/** The stream of a start, meta or error; that of a bridge which did not write the field yet is CDC. @param {any} body */
export const streamOf = (body) => str(body.stream ?? CDC, "stream");
/** Whether a start, meta or error is for those who asked the bridge of `stream` by name. @param {any} body @param {string} stream */
export const answers = (body, stream) => (body?.stream ?? CDC) === stream && body?.error_type !== "ambiguous";

/**
 * One record of stream INIT from an unpacked body. Null for a message that readers of snapshots pass over.
 * @param {string} subject @param {Readonly<Record<string, string>>} headers @param {Uint8Array} body
 * @returns {import("./records.js").SnapshotRecord | null}
 */
export function decodeInit(subject, headers, body) {
  const found = parseInit(subject);
  must(found !== null, subject);
  const { kind, token } = found;
  const raw = decodeBody(body);
  if (kind === "array chunk") {
    must(Array.isArray(raw) && raw.every(Array.isArray), "rows");
    return { kind, token, snapshotId: str(headers["Snapshot-Id"], "Snapshot-Id"), chunk: int(Number(headers.Chunk), "Chunk"), rows: raw, isJson: body[0] === 0x5b };
  }
  map(raw, kind);
  const snapshotId = str(raw.snapshot_id ?? "", "snapshot_id");
  const isOfRounds = splitSuffix(token)[1] !== "";
  if (kind === "start" && isOfRounds) {
    return {
      kind: "ranges start", token, schema: str(raw.schema, "schema"), table: str(raw.table, "table"), snapshotId,
      mode: str(raw.mode, "mode"), relationId: int(raw.relation_id, "relation_id"), schemaId: int(raw.schema_id, "schema_id"),
      columns: columnsOf(raw.columns, "type"), key: texts(raw.key, "key"), stream: streamOf(raw), version: str(raw.version, "version"),
      rowsExpected: int(raw.rows_expected, "rows_expected"),
    };
  }
  if (kind === "start" || kind === "array start") {
    return {
      kind: "start", token, schema: str(raw.schema ?? "", "schema"), table: str(raw.table, "table"), snapshotId,
      snapshotLsn: int(raw.snapshot_lsn, "snapshot_lsn"), streamSeq: int(raw.stream_seq, "stream_seq"),
      relationId: int(raw.relation_id ?? 0, "relation_id"), columns: columnsOf(raw.columns, "type"), stream: streamOf(raw),
      version: str(raw.version ?? "", "version"),
    };
  }
  if (kind === "chunk") {
    must(Array.isArray(raw.data), "data");
    const rows = raw.data.map((/** @type {unknown} */ row) => map(row, "row"));
    for (const [index, name] of raw.raw ?? []) mark(rows[index] ?? {}, [name]);
    if (isOfRounds) {
      return {
        kind: "ranges chunk", token, snapshotId, chunk: int(raw.chunk, "chunk"), snapshotLsn: int(raw.snapshot_lsn, "snapshot_lsn"),
        streamSeq: int(raw.stream_seq, "stream_seq"), rows,
      };
    }
    return { kind, token, snapshotId, chunk: int(raw.chunk, "chunk"), rows };
  }
  if (kind === "meta") {
    return {
      kind, token, snapshotId, batchCount: int(raw.batch_count, "batch_count"), rowCount: int(raw.row_count, "row_count"),
      streamSeq: int(raw.stream_seq ?? 0, "stream_seq"), stream: streamOf(raw),
    };
  }
  if (kind === "error") {
    return {
      kind, token, snapshotId, errorType: str(raw.error_type, "error_type"),
      errorMessage: str(raw.error_message, "error_message"), stream: streamOf(raw),
    };
  }
  return null;
}

/**
 * An array chunk's rows as maps, with json as events have it.
 * @param {import("./records.js").ArrayChunk} chunk @param {readonly import("./records.js").Column[]} columns
 * @returns {import("./records.js").Row[]}
 */
export function arrayRows(chunk, columns) {
  return chunk.rows.map((values) => {
    must(values.length === columns.length, `chunk ${chunk.chunk} is not of these columns`);
    return Object.fromEntries(
      columns.map(({ name, type, base }, i) => {
        const value = values[i];
        return [name, /^jsonb?$/.test(base || type) && typeof value === "string" ? nested(value, chunk.isJson) : value];
      }),
    );
  });
}

/** @param {string} written @param {boolean} isJson */
const nested = (written, isJson) => nestedOrNull(written, isJson) ?? new Raw(written);
