/** The running replica's access to its store: one local transaction at a time, and the state that its tasks share. */

import { Fatal } from "../errors.js";
import { follow, NEEDED_NOTHING } from "../rules/track.js";
import { decodeColumns, encodeColumns } from "../stores/shapes.js";
import {
  asStale, asTold, asUnpublished, checkFormat, firstCheckpoint, forgetCheckpoint, forgetTable, loadCheckpoint, loadTables,
  localOf, movedCheckpoint, savedTable,
} from "./state.js";
import { News } from "./tasks.js";

/**
 * @typedef {import("./tasks.js").Lock} Lock
 * @typedef {import("./state.js").TableRecord} TableRecord
 * @typedef {import("./state.js").Checkpoint} Checkpoint
 * @typedef {import("../stores/shapes.js").TableShape} TableShape
 * @typedef {import("../stores/dialect.js").Statement} Statement
 * @typedef {import("../rules/track.js").Stale} Stale
 */

/** Other tables are live than before, or the checkpoint was replaced: start again from the stored checkpoint. */
export class Changed extends Error {}

/**
 * The replica's durable state. `checkpoint`, `tables` and `shapes` are what the store holds: they change after a local
 * transaction was committed.
 */
export class ReplicaState {
  /** Null while no table is live. @type {Checkpoint | null} */
  checkpoint = null;
  /** @type {Map<string, TableRecord>} */
  tables = new Map();
  /** The shapes of the live tables. @type {Map<string, TableShape>} */
  shapes = new Map();
  /** Grows when the set of live tables changes: tracks that began before are invalid. */
  generation = 0;
  /** Rings when the checkpoint, the generation or a table's record has changed. */
  moved = new News();
  /** What the stream told of tables that the replica does not have. @type {Map<string, import("../rules/track.js").Told>} */
  toldOfOthers = new Map();
  /** Makes a new copy of a table; set by the session. @type {(token: string) => void} */
  needCopy = () => {};
  /** Tables with so many rows are copied in rounds; 0 for none. */
  roundsFromRows = 0;
  /** Rows of snapshots that are being gathered, and how many are expected, by token. @type {Map<string, {rows: number, expected: number | null}>} */
  gathered = new Map();
  #session = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");

  /**
   * @param {import("../stores/store.js").Store} store @param {string} stream
   * @param {import("./session.js").Events} events
   * @param {Lock} lock Held while a local transaction is open.
   */
  constructor(store, stream, events, lock) {
    this.store = store;
    this.lock = lock;
    this.stream = stream;
    this.events = events;
    this.dialect = store.dialect;
  }

  /** Read the durable state and become the store's owner: who owned it before can no longer write. Throws Fatal for a later version's store. */
  async load() {
    await checkFormat(this.store);
    const owner = this.dialect.save("owner", "id", { id: 1, session: this.#session });
    await this.store.run([owner], true);
    this.checkpoint = await loadCheckpoint(this.store);
    this.tables = await loadTables(this.store);
    this.shapes = new Map();
    for (const [token, record] of this.tables) if (record.state === "live") this.shapes.set(token, await this.shapeOf(record));
  }

  /** The shape of a table according to its record. @param {TableRecord} record @returns {Promise<TableShape>} */
  async shapeOf(record) {
    const columns = decodeColumns(record.columns);
    return {
      token: record.token, schema: record.sourceSchema, table: record.sourceTable, local: localOf(record), columns,
      localTypes: await this.store.localTypes(columns), relationId: record.relationId, keyed: record.keyed === 1,
    };
  }

  /** The same; without columns if somebody dropped the table or a column of it. @param {TableRecord} record */
  async shapeNow(record) {
    const shape = await this.shapeOf(record);
    const held = new Set(await this.lock.hold(() => this.store.columns(localOf(record))));
    return shape.columns.every(({ name }) => held.has(name)) ? shape : { ...shape, columns: [], localTypes: [] };
  }

  /** The live tables, for a new track. */
  followed() {
    return new Map(Array.from(this.shapes, ([token, shape]) => {
      const { snapshotLsn, version } = this.table(token);
      return [token, follow(this.dialect, shape, snapshotLsn, version)];
    }));
  }

  /** @param {string} token @returns {TableRecord} */
  table(token) {
    const record = this.tables.get(token);
    if (record === undefined) throw new Error(`no record of ${token}`);
    return record;
  }

  // -- local transactions

  /** Run one complete local transaction. @param {readonly Statement[]} statements */
  run(statements) {
    return this.lock.hold(() => this.#run(statements));
  }

  /** Read between local transactions. @param {string} sql @param {readonly unknown[]} [params] */
  query(sql, params = []) {
    return this.lock.hold(() => this.store.query(sql, params));
  }

  /** Store a table's record. @param {TableRecord} record */
  async save(record) {
    await this.run([savedTable(this.dialect, record)]);
    this.#put(record);
  }

  /** Store what `change` makes of a table's record, which other tasks may have changed meanwhile. @param {string} token @param {(record: TableRecord) => TableRecord} change */
  async change(token, change) {
    const before = await this.lock.hold(async () => {
      const held = this.table(token);
      const record = change(held);
      if (JSON.stringify(record) === JSON.stringify(held)) return null;
      await this.#run([savedTable(this.dialect, record)]);
      this.#put(record);
      return held;
    });
    if (before !== null) this.notePublished(new Map([[token, before]]));
  }

  /** Stop following a table, or copying it, because the bridge does not publish it. @param {string} token @param {string} reason */
  async leaveUnpublished(token, reason) {
    await this.change(token, (record) => asUnpublished(record, reason));
    if (this.shapes.has(token)) this.leave(new Map([[token, { reason, neededSeq: NEEDED_NOTHING, cause: "publication" }]]));
  }

  /** Remove what is stored about a table that is not live. @param {string} token */
  async forgetTable(token) {
    await this.run(forgetTable(this.dialect, token));
    this.tables.delete(token);
  }

  /** Have a live table copied again because a change does not fit its rows. @param {string} token @param {string} reason @param {boolean} [keyed] */
  async noteConflict(token, reason, keyed) {
    await this.change(token, (record) => asStale(record, reason, NEEDED_NOTHING, keyed));
    this.leave(new Map([[token, { reason, neededSeq: NEEDED_NOTHING, cause: "rows" }]]));
  }

  /** Have all live tables copied again because the stream no longer holds what comes next. @param {string} reason */
  async forget(reason) {
    const live = [...this.tables.values()].filter(({ state }) => state === "live").map(({ token }) => token);
    await this.lock.hold(async () => {
      const records = Array.from(this.tables.values(), (record) => asStale(record, reason, NEEDED_NOTHING));
      await this.#run([forgetCheckpoint(this.dialect), ...records.map((record) => savedTable(this.dialect, record))]);
      for (const record of records) this.#put(record);
      this.checkpoint = null;
    });
    this.moved.ring();
    this.leave(new Map(live.map((token) => [token, { reason, neededSeq: NEEDED_NOTHING, cause: "stream" }])));
  }

  /** The first statement of every local transaction: of two writers on a store, the earlier one fails here. @returns {Statement} */
  stillOurs() {
    const mark = (/** @type {number} */ i) => this.dialect.parameter(i);
    const sql = `UPDATE ${this.dialect.own("owner")} SET session = ${mark(1)} WHERE id = 1 AND session = ${mark(2)}`;
    return { sql, params: [[this.#session, this.#session]], counted: true };
  }

  /** @param {readonly Statement[]} statements */
  async #run(statements) {
    try {
      await this.store.run([this.stillOurs(), ...statements], true);
    } catch (error) {
      await this.rollBack();
      throw error;
    }
  }

  async rollBack() {
    try {
      await this.store.rollback();
    } catch (error) {
      this.events.log(`cannot roll back: ${error}`);
    }
  }

  /** @param {TableRecord} record */
  #put(record) {
    this.tables.set(record.token, record);
    this.events.tableChanged(record);
  }

  /** Keep records that were stored with something else. @param {Iterable<TableRecord>} records */
  keep(records) {
    for (const record of records) this.#put(record);
  }

  /** Stop following tables, and have those that are still published copied again. @param {Map<string, Stale>} stale */
  leave(stale) {
    if (stale.size === 0) return;
    for (const token of stale.keys()) this.shapes.delete(token);
    this.generation += 1;
    this.moved.ring();
    for (const [token, { reason, cause }] of stale) {
      if (this.table(token).state === "unpublished") continue;
      this.events.copyAgain(token, reason, cause);
      this.needCopy(token); // without a checkpoint: no other generation may come in between
    }
  }

  /** Tell which tables are no longer published, and copy those that are published again. @param {Map<string, TableRecord>} before */
  notePublished(before) {
    for (const [token, old] of before) {
      const { state, reason } = this.table(token);
      if (old.state !== "unpublished" && state === "unpublished") {
        this.events.log(`table ${token} is no longer published and keeps its rows: ${reason} (WB509)`);
      } else if (old.state === "unpublished" && state !== "unpublished") {
        this.needCopy(token);
      }
    }
  }

  /**
   * Switch in a new copy that is at `checkpoint`: the live tables' one, or the first. Only while the lock is held.
   * @param {TableRecord} record @param {TableShape} shape @param {readonly Statement[]} statements @param {Checkpoint} checkpoint
   */
  async goLive(record, shape, statements, checkpoint) {
    const moved = this.checkpoint === null
      ? firstCheckpoint(this.dialect, checkpoint)
      : movedCheckpoint(this.dialect, this.checkpoint, checkpoint);
    await this.#run([moved, ...statements, savedTable(this.dialect, record)]);
    this.checkpoint = checkpoint;
    this.shapes.set(record.token, shape);
    this.generation += 1;
    this.gathered.delete(record.token);
    this.#put(record);
    this.moved.ring();
    this.events.committed({ tokens: [record.token], commitUs: 0 });
  }
}

/** Runs what a track has gathered. Holds the replica's lock while a transaction of the source is half applied. */
export class LocalTransaction {
  #replica;
  #track;
  #generation;
  /** @type {(() => void) | null} */
  #release = null;

  /** @param {ReplicaState} replica @param {import("../rules/track.js").Track} track */
  constructor(replica, track) {
    this.#replica = replica;
    this.#track = track;
    this.#generation = replica.generation;
  }

  /** Run a part of a large transaction, which nobody sees until it is committed. Throws Changed. */
  async flush() {
    await this.#hold();
    await this.#replica.store.run([this.#replica.stillOurs(), ...this.#track.drain()], false);
  }

  /** Run what is gathered and move the checkpoint, in one commit. Throws Changed when the track is invalid by now. */
  async commit() {
    await this.#hold();
    const replica = this.#replica;
    const track = this.#track;
    const { checkpoint, dialect } = replica;
    if (checkpoint === null) throw new Changed();
    const rows = track.drain();
    /** @type {Map<string, TableRecord>} */
    const records = new Map();
    for (const [token, { reason, neededSeq }] of track.stale) records.set(token, asStale(replica.table(token), reason, neededSeq));
    for (const token of track.reshaped) {
      const table = track.tables.get(token);
      if (table !== undefined) records.set(token, { ...replica.table(token), columns: encodeColumns(table.shape.columns) });
    }
    track.reshaped.clear();
    for (const [token, told] of track.told) {
      if (replica.tables.has(token)) records.set(token, asTold(records.get(token) ?? replica.table(token), told));
      else replica.toldOfOthers.set(token, told);
    }
    track.told.clear();
    const before = new Map(Array.from(records.keys(), (token) => [token, replica.table(token)]));
    const next = { ...checkpoint, cursor: track.closed, lastMessage: track.lastMessage };
    // the checkpoint before any row: another writer of this store would have applied the same rows already
    await replica.store.run(
      [replica.stillOurs(), movedCheckpoint(dialect, checkpoint, next), ...rows, ...Array.from(records.values(), (one) => savedTable(dialect, one))],
      true,
    );
    replica.checkpoint = next;
    for (const [token, table] of track.tables) replica.shapes.set(token, table.shape);
    replica.keep(records.values());
    this.release();
    replica.moved.ring();
    if (track.applied.size > 0) replica.events.committed({ tokens: [...track.applied.keys()], commitUs: track.commitUs });
    track.applied.clear();
    replica.notePublished(before);
    if (track.stale.size > 0) {
      const stale = new Map(track.stale);
      track.stale.clear();
      replica.leave(stale);
      this.#generation = replica.generation;
    }
  }

  async #hold() {
    if (this.#release !== null) return;
    this.#release = await this.#replica.lock.acquire();
    if (this.#generation !== this.#replica.generation) throw new Changed();
  }

  /** Let other tasks run local transactions. */
  release() {
    this.#release?.();
    this.#release = null;
  }

  /** Undo what is not committed. The track is invalid afterwards. */
  async rollBack() {
    if (this.#release !== null) await this.#replica.rollBack();
    this.release();
  }
}

/** The error for a store that another writer owns, or whose checkpoint another writer has moved. */
export const inUse = () => new Fatal("another replica writes to this store", { code: "WB505", fix: "close one of them" });
