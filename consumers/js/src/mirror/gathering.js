/** Gathers a table's snapshot in a staging table beside the live one: one that INIT holds, or a new one. */

import { arrayRows } from "../contract/decoding.js";
import { arraysOfTable, covers, INIT, parseInit, snapshotOfTable } from "../contract/subjects.js";
import { Transient } from "../errors.js";
import { follow } from "../rules/track.js";
import { clock } from "./clock.js";
import { checkPublished, makeStaging, SnapshotRefused, SnapshotUnusable, tellProgress } from "./gathered.js";
import { decodeAnswer } from "./named_rows.js";
import { gatherInRounds, inRounds, RoundsRefused } from "./rounds.js";
import { askForSnapshot, findUsableStart, whyUnusable } from "./snapshot_requests.js";

const ASK_AGAIN_MS = 30_000;
const UNANSWERED_MS = 10_000;
/** How often to look whether the table is still published, while nothing of a snapshot comes. */
const LOOK_MS = 2_000;
/** Rows per local transaction. */
const ROWS_MAX = 5_000;

/**
 * Read a snapshot that INIT holds, or ask for one.
 * @param {import("./replica_state.js").ReplicaState} replica @param {import("./source_stream.js").SourceStream} source
 * @param {string} token @param {AbortSignal} signal @returns {Promise<import("./gathered.js").Gathered>}
 */
export async function gather(replica, source, token, signal) {
  checkPublished(replica, token);
  const info = await source.transport.streamInfo(INIT);
  if (info === null) throw new Transient(`stream ${INIT} is gone; waiting for a bridge`, { code: "WB215" });
  const { seq, reason } = await findUsableStart(replica, source, token);
  if (seq === 0 && (await inRounds(replica, source, token))) {
    try {
      return await gatherInRounds(replica, source, token, signal);
    } catch (error) {
      if (!(error instanceof RoundsRefused)) throw error;
      replica.events.log(`${token} cannot be copied in rounds, so a complete snapshot is asked for: ${error.message}`);
    }
  }
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
        const record = await decodeAnswer(source, message, replica.events.log);
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

  /** Take one record; return the snapshot when it is complete. @param {import("./source_stream.js").Message} message @param {import("../contract/records.js").SnapshotRecord} record @returns {Promise<import("./gathered.js").Gathered | null>} */
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
    } else if (record.kind === "chunk" || record.kind === "array chunk") {
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
    this.#table = follow(this.replica.dialect, await makeStaging(this.replica, start), start.snapshotLsn);
    tellProgress(this.replica, this.token, this.#rows);
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
    tellProgress(this.replica, this.token, this.#rows);
  }
}
