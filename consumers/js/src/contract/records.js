/** The values that readers see: one kind of object per kind of message. */

/** Column to value. @typedef {Record<string, unknown>} Row */

/** A value that was kept as PostgreSQL's text although its type has a native form. */
export class Raw {
  /** @param {string} text */
  constructor(text) {
    this.text = text;
  }

  toString() {
    return this.text;
  }
}

/**
 * One column of a table. `pk` is null when the catalog had changed before the bridge could read it; `base` is the type under a
 * domain or under an array of a domain, else empty.
 * @typedef {{name: string, type: string, pk: boolean | null, base: string}} Column
 */

/** The type by which a column's values are rendered. @param {Column} column */
export const nativeType = (column) => column.base || column.type;

/**
 * @typedef {object} Change
 * @property {"insert" | "update" | "delete"} kind
 * @property {string} token
 * @property {string} schema
 * @property {string} table
 * @property {number} lsn
 * @property {number} seq
 * @property {boolean} last The last event of its transaction.
 * @property {number} commitUs Commit time in microseconds since 1970 UTC.
 * @property {string[]} key Columns of the replica identity.
 * @property {Row} row
 * @property {string[]} omitted Columns that were too large for a message: unknown, not null.
 * @property {Row | null} old
 * @property {string[]} unchanged Columns that PostgreSQL did not send.
 */
/** @typedef {{kind: "truncate", token: string, schema: string, table: string, lsn: number, seq: number, last: boolean, commitUs: number}} Truncate */
/** @typedef {{kind: "schema", token: string, table: string, lsn: number, seq: number, last: boolean, relationId: number, columns: Column[]}} SchemaChange */
/** @typedef {{kind: "gap", lsn: number, seq: number, last: boolean, reason: string, fromLsn: number, toLsn: number, tables: string[], ofTable: boolean}} Gap */
/** @typedef {{kind: "published", lsn: number, seq: number, last: boolean, token: string, change: string, version: string, reason: string}} Published */
/** @typedef {Change | Truncate | SchemaChange | Gap | Published} Event */

/** @typedef {{kind: "start", token: string, schema: string, table: string, snapshotId: string, snapshotLsn: number, streamSeq: number, relationId: number, columns: Column[], stream: string, version: string}} SnapshotStart */
/** @typedef {{kind: "chunk", token: string, snapshotId: string, chunk: number, rows: Row[]}} SnapshotChunk */
/** @typedef {{kind: "array chunk", token: string, snapshotId: string, chunk: number, rows: unknown[][], isJson: boolean}} ArrayChunk */
/** @typedef {{kind: "meta", token: string, snapshotId: string, batchCount: number, rowCount: number, streamSeq: number, stream: string}} SnapshotMeta */
/** @typedef {{kind: "error", token: string, snapshotId: string, errorType: string, errorMessage: string, stream: string}} SnapshotError */
/**
 * The start of a snapshot in rounds, or of an answer that has rows named by their keys (`mode`: `ranges` or `keys`); `token` with its
 * suffix. Each chunk has its own LSN, and comes right after the event `streamSeq`.
 * @typedef {{kind: "ranges start", token: string, schema: string, table: string, snapshotId: string, mode: string, relationId: number, schemaId: number, columns: Column[], key: string[], stream: string, version: string, rowsExpected: number}} RangesStart
 * @typedef {{kind: "ranges chunk", token: string, snapshotId: string, chunk: number, snapshotLsn: number, streamSeq: number, rows: Row[]}} RangesChunk
 */
/** @typedef {RangesStart | RangesChunk | SnapshotStart | SnapshotChunk | ArrayChunk | SnapshotMeta | SnapshotError} SnapshotRecord */

export {};
