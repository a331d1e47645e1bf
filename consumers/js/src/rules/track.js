/** Turns events into statements: selects those that a copy still needs, up to ends of transactions. No I/O. */

import { comparePositions, idIn, ROW_RANK, SCHEMA_RANK, START } from "../contract/positions.js";
import { UNKNOWN_MESSAGE } from "../contract/stream_view.js";
import { RowStatements, UnknownColumn } from "../stores/row_statements.js";
import { keyOf } from "../stores/shapes.js";
import { counts, identityOf, IncompleteRow, isCertain, isOtherVersion, NamesNoRow, writtenColumns } from "./rows.js";

/**
 * How far a copy is: it has read everything up to `streamSeq` and applied everything up to `position`.
 * @typedef {{streamSeq: number, position: import("../contract/positions.js").Position}} Cursor
 * @typedef {import("../stores/dialect.js").Statement} Statement
 * @typedef {import("../contract/records.js").Event} Event
 */

/** Leaves what a new snapshot must have reached as it was. */
export const NEEDED_AS_BEFORE = 0;
/** Any snapshot will do. It replaces an earlier requirement, which may be of another stream. */
export const NEEDED_NOTHING = -1;

/**
 * Why a table can no longer be followed, and the stream sequence that a new snapshot must have reached.
 * @typedef {{reason: string, neededSeq: number, cause: "gap" | "schema" | "stream" | "rows" | "publication"}} Stale
 */
/** What the stream last said of how a table is published; an empty version: not any more. @typedef {{version: string, seq: number, reason: string}} Told */

/** A table whose events are applied. `version` is the snapshot's. @typedef {{shape: import("../stores/shapes.js").TableShape, snapshotLsn: number, version: string, statements: RowStatements}} FollowedTable */

/**
 * @param {import("../stores/dialect.js").Dialect} dialect @param {import("../stores/shapes.js").TableShape} shape
 * @param {number} snapshotLsn @param {string} [version] @returns {FollowedTable}
 */
export const follow = (dialect, shape, snapshotLsn, version = "") =>
  ({ shape, snapshotLsn, version, statements: new RowStatements(dialect, shape) });

/** A table cannot be followed from the middle of a transaction on: start again with the table in `staleFrom`. */
export class CutOff extends Error {
  /** @param {string} token @param {number} lsn @param {Stale} stale */
  constructor(token, lsn, stale) {
    super(token);
    this.token = token;
    this.lsn = lsn;
    this.stale = stale;
  }
}

/** Follows the tables that share one cursor. A rollback makes it invalid: a new track begins at the stored cursor. */
export class Track {
  /** The transaction of which more may come; null between transactions. @type {number | null} */
  openLsn = null;
  /** Number of changes since the last `drain`. */
  gathered = 0;
  /** @type {Map<string, Stale>} */
  stale = new Map();
  /** How tables are published, followed here or not. @type {Map<string, Told>} */
  told = new Map();
  /** Tables whose columns changed: the new ones must be stored together with the rows. @type {Set<string>} */
  reshaped = new Set();
  /** Values that were too large for a message. */
  unknownValues = 0;
  /** Changes that were drained, by table. @type {Map<string, number>} */
  applied = new Map();
  /** Commit time of the newest change that was taken. */
  commitUs = 0;
  #isDirty = false;
  #seq;
  /** @type {Readonly<Record<string, string>> | null} */
  #headers = null;
  #position;
  /** @type {Map<string, Statement[]>} */
  #runs = new Map();
  /** @type {Map<string, number>} */
  #touched = new Map();
  #dialect;
  #voids;
  #staleFrom;

  /**
   * `voids`: transactions that a gap has cut off, each with that gap's sequence. Events of a table in `staleFrom` count below
   * that LSN only.
   * @param {import("../stores/dialect.js").Dialect} dialect @param {Cursor} cursor @param {Map<string, FollowedTable>} tables
   * @param {{voids?: Map<number, number>, staleFrom?: Map<string, [lsn: number, stale: Stale]>, lastMessage?: import("../contract/stream_view.js").LastMessage}} [more]
   */
  constructor(dialect, cursor, tables, { voids = new Map(), staleFrom = new Map(), lastMessage = UNKNOWN_MESSAGE } = {}) {
    this.#dialect = dialect;
    this.tables = new Map(tables);
    /** The end of the last complete transaction that was taken. */
    this.closed = cursor;
    /** The message there. */
    this.lastMessage = lastMessage;
    this.#voids = voids;
    this.#staleFrom = staleFrom;
    this.#seq = cursor.streamSeq;
    this.#position = cursor.position;
  }

  /** The stream sequence of the last message that was taken. */
  get headSeq() {
    return this.#seq;
  }

  /** Whether anything was taken since the last `drain`. */
  get isDirty() {
    return this.#isDirty;
  }

  /** Whether a message belongs to a transaction that a gap after it has cut off. @param {number} lsn @param {number} seq */
  leavesOut(lsn, seq) {
    return seq < (this.#voids.get(lsn) ?? 0);
  }

  /**
   * Take the events of one message. Throws CutOff when a table must keep the rows from before the open transaction.
   * @param {number} streamSeq @param {readonly Event[]} events @param {Readonly<Record<string, string>>} headers
   */
  take(streamSeq, events, headers) {
    this.#seq = streamSeq;
    this.#headers = headers;
    this.#isDirty = true;
    for (const event of events) {
      if (event.kind === "gap" && !event.ofTable) {
        this.#gap(event);
        continue;
      }
      if (event.kind === "published") {
        this.#published(event);
        continue;
      }
      const rank = event.kind === "schema" ? SCHEMA_RANK : ROW_RANK;
      /** @type {import("../contract/positions.js").Position} */
      const position = [event.lsn, event.seq, rank];
      // else it was applied already, or will never be complete
      if (comparePositions(position, this.#position) > 0 && !this.leavesOut(event.lsn, streamSeq)) {
        this.#position = position;
        this.#apply(event);
      }
      this.openLsn = event.lsn;
      if (event.last) this.close();
    }
  }

  /** Note that the open transaction is complete. */
  close() {
    this.openLsn = null;
    this.closed = { streamSeq: this.#seq, position: this.#position };
    if (this.#headers !== null) this.lastMessage = { seq: this.#seq, id: idIn(this.#headers) ?? "" };
  }

  /** Move on to `streamSeq`: nothing up to there concerns these tables. @param {number} streamSeq @param {import("../contract/stream_view.js").LastMessage} lastMessage */
  advance(streamSeq, lastMessage) {
    this.#seq = streamSeq;
    this.#headers = null;
    this.#isDirty = true;
    this.close();
    this.lastMessage = lastMessage;
  }

  /** Hand over the gathered statements, which must run in this order. */
  drain() {
    const statements = [...this.#runs.values()].flat();
    for (const { token = "", params, isRow } of statements) {
      if (isRow) this.applied.set(token, (this.applied.get(token) ?? 0) + params.length);
    }
    this.#runs = new Map();
    this.gathered = 0;
    this.#isDirty = false;
    return statements;
  }

  /** @param {Exclude<Event, import("../contract/records.js").Published>} event */
  #apply(event) {
    if (event.kind === "gap") {
      for (const token of event.tables) this.#setStale(token, event.reason, event.lsn, "gap");
      return;
    }
    const { token } = event;
    const table = this.tables.get(token);
    if (table === undefined || !counts(event, table.snapshotLsn)) return;
    const since = this.#staleFrom.get(token);
    if (since !== undefined && event.lsn >= since[0] && since[0] >= table.snapshotLsn) {
      this.#drop(token, since[1]);
      return;
    }
    if (event.kind === "schema") {
      this.#reshape(table, event);
      return;
    }
    try {
      this.#gather(table, event);
    } catch (error) {
      if (error instanceof UnknownColumn) { // without its schema event the rows here cannot be right
        return this.#setStale(token, `a change has a column ${error.message} that no schema has`, event.lsn, "schema");
      }
      if (error instanceof NamesNoRow || error instanceof IncompleteRow) {
        return this.#setStale(token, error.message, event.lsn, "rows");
      }
      throw error;
    }
    this.commitUs = event.commitUs;
    this.#touched.set(token, event.lsn);
  }

  /** @param {FollowedTable} table @param {import("../contract/records.js").Change | import("../contract/records.js").Truncate} event */
  #gather({ shape, statements }, event) {
    if (event.kind === "truncate") {
      this.#add(event.token, statements.truncate(), { isRow: true });
      return;
    }
    if (event.kind === "insert") {
      this.#add(event.token, statements.insert(writtenColumns(event)), { isRow: true });
    } else if (event.kind === "update") {
      const row = writtenColumns(event);
      const identity = identityOf(event, keyOf(shape), shape.columns.length);
      if (Object.keys(row).length > 0) this.#add(event.token, statements.update(row, identity), { isRow: true, counted: true });
    } else {
      const identity = identityOf(event, keyOf(shape), shape.columns.length);
      this.#add(event.token, statements.delete(identity), { isRow: true, counted: true });
    }
    this.unknownValues += event.omitted.length;
  }

  /** @param {string} token @param {[sql: string, params: unknown[]]} bound @param {{isRow?: boolean, counted?: boolean}} [more] */
  #add(token, [sql, params], { isRow = false, counted = false } = {}) {
    this.gathered += 1;
    let runs = this.#runs.get(token);
    if (runs === undefined) this.#runs.set(token, (runs = []));
    const newest = runs.at(-1);
    if (newest?.sql === sql) newest.params.push(params);
    else runs.push({ sql, params: [params], counted, token, isRow });
  }

  /** @param {FollowedTable} table @param {import("../contract/records.js").SchemaChange} change */
  #reshape(table, change) {
    const { token } = change;
    const { columns, localTypes } = table.shape;
    if (change.relationId !== table.shape.relationId) {
      return this.#setStale(token, "another table has this name now", change.lsn, "schema");
    }
    const told = new Map(change.columns.map((column) => [column.name, column.type]));
    const isSame = columns.length === told.size && columns.every(
      (column, i) => column.name === change.columns[i].name && column.type === change.columns[i].type,
    );
    if (isSame) return;
    if (!isCertain(columns, change.columns)) {
      const held = new Map(columns.map((column) => [column.name, column.type]));
      const names = [...new Set([...held.keys(), ...told.keys()])].filter((name) => held.get(name) !== told.get(name));
      const words = names.sort().map((name) => `${name} ${told.get(name) ?? "(dropped)"}`).join(", ");
      return this.#setStale(token, `its columns changed: ${words || "their order"}`, change.lsn, "schema");
    }
    for (const { name } of columns) {
      if (!told.has(name)) this.#add(token, [this.#dialect.dropColumn(table.shape.local, name), []]);
    }
    const isKept = (/** @type {unknown} */ _, /** @type {number} */ i) => told.has(columns[i].name);
    table.shape = { ...table.shape, columns: columns.filter(isKept), localTypes: localTypes.filter(isKept) };
    table.statements = new RowStatements(this.#dialect, table.shape);
    this.reshaped.add(token);
  }

  /** @param {import("../contract/records.js").Published} event */
  #published(event) {
    this.close();
    const version = event.change === "removed" ? "" : event.version;
    this.told.set(event.token, { version, seq: this.#seq, reason: event.reason });
    const table = this.tables.get(event.token);
    if (table !== undefined && isOtherVersion(table.version, version)) {
      // what was told, and not a sequence alone, decides which snapshots are new enough
      const reason = `it is published differently: ${event.reason}`;
      this.#drop(event.token, { reason, neededSeq: NEEDED_AS_BEFORE, cause: "publication" });
    }
  }

  /** Positions after a gap may be lower than before it. @param {import("../contract/records.js").Gap} gap */
  #gap(gap) {
    this.#position = START;
    for (const token of gap.tables.length > 0 ? gap.tables : [...this.tables.keys()]) {
      this.#setStale(token, `changes are permanently lost: ${gap.reason}`, -1, "gap");
    }
    this.close();
  }

  /** @param {string} token @param {string} reason @param {number} lsn @param {Stale["cause"]} cause */
  #setStale(token, reason, lsn, cause) {
    if (!this.tables.has(token)) return;
    const stale = { reason, neededSeq: this.#seq, cause };
    // a part of this transaction is gathered already: the table must keep the rows from before it
    if (lsn >= 0 && this.#touched.get(token) === lsn) throw new CutOff(token, lsn, stale);
    this.#drop(token, stale);
  }

  /** @param {string} token @param {Stale} stale */
  #drop(token, stale) {
    this.tables.delete(token);
    this.stale.set(token, stale);
  }
}
