/** Gathers a table's snapshot in a staging table beside the live one: one that INIT holds, or a new one. */

import { arrayRows, decodeInit, MalformedMessage } from "../contract/decoding.js";
import { arraysOfTable, covers, INIT, parseInit, snapshotOfTable } from "../contract/subjects.js";
import { Transient } from "../errors.js";
import { follow, NEEDED_AS_BEFORE } from "../rules/track.js";
import { clock } from "./clock.js";
import { askForSnapshot, findUsableStart, whyUnusable } from "./snapshot_requests.js";
import { localOf } from "./state.js";

const ASK_AGAIN_MS = 30_000;
const UNANSWERED_MS = 10_000;
/** How often to look whether the table is still published, while nothing of a snapshot comes. */
const LOOK_MS = 2_000;
/** Rows per local transaction. */
const ROWS_MAX = 5_000;

/** A snapshot does not lead to the live tables' checkpoint: another one is needed. */
export class SnapshotUnusable extends Error {
  /** @param {string} reason @param {{neededSeq?: number, initSeq?: number, told?: import("../rules/track.js").Told}} [more] `initSeq`: of a start that must not be read again. */
  constructor(reason, { neededSeq = NEEDED_AS_BEFORE, initSeq = 0, told } = {}) {
    super(reason);
    this.neededSeq = neededSeq;
    this.initSeq = initSeq;
    this.told = told;
  }
}

/** The bridge could not take the snapshot. */
export class SnapshotRefused extends Error {}
/** The bridge does not publish the table any more. */
export class NotPublished extends Error {}
/** The store cannot hold this table at all. */
export class CannotCopy extends Error {}

/**
 * A complete snapshot in its staging table; `created` is the stream's.
 * @typedef {{start: import("../contract/records.js").SnapshotStart, created: string, initSeq: number, staging: import("../stores/shapes.js").TableShape, rows: number}} Gathered
 */

/** Throw NotPublished when any task has found that the table is no longer published. @param {import("./replica_state.js").ReplicaState} replica @param {string} token */
export function checkPublished(replica, token) {
  if (replica.table(token).state === "unpublished") throw new NotPublished(token);
}

/**
 * Read a snapshot that INIT holds, or ask for one.
 * @param {import("./replica_state.js").ReplicaState} replica @param {import("./source_stream.js").SourceStream} source
 * @param {string} token @param {AbortSignal} signal @returns {Promise<Gathered>}
 */
export async function gather(replica, source, token, signal) {
  checkPublished(replica, token);
  const info = await source.transport.streamInfo(INIT);
  if (info === null) throw new Transient(`stream ${INIT} is gone; waiting for a bridge`, { code: "WB215" });
  const { seq, reason } = await findUsableStart(replica, source, token);
  if (seq === 0) {
    replica.events.log(`asking for a snapshot of ${token}: ${reason}`);
    askForSnapshot(source, token);
  }
  const filters = snapshotOfTable(token);
  const arrays = arraysOfTable(token);
  if (covers(info.config.subjects ?? [], arrays)) filters.push(...arrays);
  const consumer = await source.transport.consume(INIT, filters, seq || info.state.last_seq + 1);
  try {
    const reader = new SnapshotReader(replica, source, token);
    const beganAt = clock.now();
    let askedAt = beganAt;
    let isTold = seq !== 0;
    for (;;) {
      const messages = await consumer.receive(LOOK_MS, signal);
      checkPublished(replica, token);
      if (messages.length === 0 && clock.now() - Math.max(askedAt, reader.heardAt) >= ASK_AGAIN_MS) {
        // no bridge may have been there to receive it, or the rest of the snapshot was deleted from INIT
        askedAt = clock.now();
        askForSnapshot(source, token);
      }
      if (messages.length > 0) isTold = true;
      else if (!isTold && clock.now() - beganAt > UNANSWERED_MS) {
        isTold = true; // without a bridge a copy waits forever
        replica.events.log(`no bridge has answered the request for a snapshot of ${token}; waiting`);
      }
      for (const message of messages) {
        if (reader.passesOver(message)) continue;
        let record;
        try {
          record = decodeInit(message.subject, message.headers, await source.unpacked(message));
        } catch (error) {
          if (!(error instanceof MalformedMessage)) throw error;
          // foreign; had a bridge written it, a chunk will be missing
          replica.events.log(`skipping message ${message.seq} of ${INIT} on ${message.subject}: ${error.message}`);
          continue;
        }
        const gathered = record === null ? null : await reader.take(message, record);
        if (gathered !== null) return gathered;
      }
    }
  } finally {
    await consumer.close();
  }
}

/** Reads the messages of a table's snapshots in order; a new start replaces the snapshot before it. */
class SnapshotReader {
  /** When a part of the snapshot came last. */
  heardAt = 0;
  /** @type {import("../contract/records.js").SnapshotStart | null} */
  #start = null;
  /** @type {import("../rules/track.js").FollowedTable | null} */
  #table = null;
  #initSeq = 0;
  #created = "";
  #chunks = 0;
  #rows = 0;

  /** @param {import("./replica_state.js").ReplicaState} replica @param {import("./source_stream.js").SourceStream} source @param {string} token */
  constructor(replica, source, token) {
    this.replica = replica;
    this.source = source;
    this.token = token;
  }

  /** Whether a message has rows of another snapshot than this one. @param {import("./source_stream.js").Message} message */
  passesOver(message) {
    const found = parseInit(message.subject);
    if (found === null || (found.kind !== "chunk" && found.kind !== "array chunk")) return false;
    return this.#start?.snapshotId !== (found.snapshotId || message.headers["Snapshot-Id"]);
  }

  /** Take one record; return the snapshot when it is complete. @param {import("./source_stream.js").Message} message @param {import("../contract/records.js").SnapshotRecord} record @returns {Promise<Gathered | null>} */
  async take(message, record) {
    const start = this.#start;
    if ("stream" in record && record.stream !== this.source.name) return null; // of another bridge that publishes such a table
    if (record.kind === "start") {
      if (record.snapshotId !== start?.snapshotId) await this.#begin(record, message.seq);
    } else if (record.kind === "error") {
      if (record.errorType === "ambiguous") return null; // somebody else's request named no bridge
      if (!record.snapshotId || start === null || record.snapshotId === start.snapshotId) {
        throw new SnapshotRefused(`${record.errorType}: ${record.errorMessage}`);
      }
    } else if (start === null || this.#table === null || record.snapshotId !== start.snapshotId) {
      return null; // the rest of a snapshot that began earlier
    } else if (record.kind === "meta") {
      if (record.batchCount !== this.#chunks || record.rowCount !== this.#rows) {
        const came = `${this.#chunks} chunks of ${this.#rows} rows came, ${record.batchCount} of ${record.rowCount} were sent`;
        throw new SnapshotUnusable(came, { initSeq: this.#initSeq });
      }
      return { start, created: this.#created, initSeq: this.#initSeq, staging: this.#table.shape, rows: this.#rows };
    } else {
      await this.#chunk(record, start, this.#table);
    }
    return null;
  }

  /** @param {import("../contract/records.js").SnapshotStart} start @param {number} initSeq */
  async #begin(start, initSeq) {
    await this.source.look();
    const reason = whyUnusable(this.replica, this.source, start);
    if (reason) {
      this.replica.events.log(`waiting for another snapshot of ${this.token} than ${start.snapshotId}: ${reason}`);
      this.#start = this.#table = null;
      return;
    }
    this.heardAt = clock.now();
    this.#start = start;
    this.#initSeq = initSeq;
    this.#created = this.source.view.created;
    this.#chunks = this.#rows = 0;
    this.#table = follow(this.replica.dialect, await this.#makeTable(start), start.snapshotLsn);
    this.#tellProgress();
  }

  /** @param {import("../contract/records.js").SnapshotChunk | import("../contract/records.js").ArrayChunk} chunk @param {import("../contract/records.js").SnapshotStart} start @param {import("../rules/track.js").FollowedTable} table */
  async #chunk(chunk, start, table) {
    if (chunk.chunk < this.#chunks) return;
    if (chunk.chunk > this.#chunks) throw new SnapshotUnusable(`chunk ${this.#chunks} is missing`, { initSeq: this.#initSeq });
    const rows = chunk.kind === "chunk" ? chunk.rows : arrayRows(chunk, start.columns);
    for (let first = 0; first < rows.length; first += ROWS_MAX) {
      /** @type {import("../stores/dialect.js").Statement[]} */
      const statements = [];
      for (const row of rows.slice(first, first + ROWS_MAX)) {
        const [sql, params] = table.statements.insert(row);
        const newest = statements.at(-1);
        if (newest?.sql === sql) newest.params.push(params);
        else statements.push({ sql, params: [params], token: table.shape.token });
      }
      await this.replica.run(statements);
    }
    this.#chunks += 1;
    this.#rows += rows.length;
    this.heardAt = clock.now();
    this.#tellProgress();
  }

  #tellProgress() {
    this.replica.gathered.set(this.token, this.#rows);
    this.replica.events.tableChanged(this.replica.table(this.token));
  }

  /** Create the staging table. @param {import("../contract/records.js").SnapshotStart} start @returns {Promise<import("../stores/shapes.js").TableShape>} */
  async #makeTable(start) {
    const { replica } = this;
    const { dialect, store } = replica;
    const record = replica.table(start.token);
    const obstacle = dialect.obstacle(start.columns.map(({ name }) => name));
    if (obstacle) throw new CannotCopy(obstacle);
    if (record.state === "waiting" && (await replica.lock.hold(() => store.exists(localOf(record))))) {
      throw new CannotCopy(`there is a table ${dialect.table(localOf(record))} already, which is not this mirror's: drop or rename it`);
    }
    const local = dialect.stagingName(localOf(record), start.token);
    const shape = {
      token: start.token, schema: start.schema, table: start.table, local, columns: start.columns,
      localTypes: await replica.lock.hold(() => store.localTypes(start.columns)), relationId: start.relationId,
      keyed: record.keyed === 1,
    };
    const before = await replica.lock.hold(() => store.makeSchema(local));
    const statements = [...before, dialect.dropTable(local), dialect.createTable(shape)];
    await replica.run(statements.map((sql) => ({ sql, params: [[]], token: start.token })));
    return shape;
  }
}
