/**
 * Gathers a snapshot in rounds: chunks and events together, in one local transaction with the place that both have reached. After a
 * kill the copy goes on where it was. When every row is complete, the staging table is what the source was at the last chunk's place,
 * as after a complete snapshot there, and joins in the same way. The rule is that of `rules/ranges.js`.
 */

import { bridgePosition, GAP_RANK } from "../contract/positions.js";
import { CDC_ALL, cdcOfTable, CDC_NOTICES, INIT, initError, initStart, RANGES, snapshotOfTable, snapshotRequest } from "../contract/subjects.js";
import { ApplyConflict } from "../errors.js";
import { isOtherVersion, NamesNoRow } from "../rules/rows.js";
import { joined, LenientStatements } from "../stores/lenient_statements.js";
import { UnknownColumn } from "../stores/row_statements.js";
import { Boundaries } from "./boundaries.js";
import { clock } from "./clock.js";
import { checkPublished, makeStaging, SnapshotRefused, SnapshotUnusable, stagingShape, tellProgress } from "./gathered.js";
import { ASK_AGAIN_MS, askByKey, BODY_BYTES_MAX, decodeAnswer, KEYS_MAX, LOOK_MS, requestBody } from "./named_rows.js";
import { newestAnswer } from "./snapshot_requests.js";
import { takes } from "./state.js";

/** Silence after which a snapshot that has begun is asked for again: a bridge that comes back continues it by itself. */
const SILENT_MS = 1_800_000;
/** Requests without an answer after which the bridge counts as one that knows no rounds. */
const UNANSWERED_MAX = 3;
const EVENTS_MS = 100;
/** Messages with changes per local transaction. */
const ROWS_MAX = 5_000;
/** How often incomplete rows are asked for: values that are omitted again and again stay unknown. */
const ASKED_MAX = 10;

/** The table cannot be copied in rounds, or nobody answers the request: take a complete snapshot. */
export class RoundsRefused extends Error {}

/**
 * How far a copy in rounds is, as the store keeps it together with the rows. `created`: when the stream was created that `streamSeq`
 * is a sequence of. `initSeq`: INIT sequence of the start. `initAt`: of the last chunk that was taken, or of the start. `streamSeq`:
 * all events of the table up to here are applied. `lsn` and `seq`: the last event that was applied, which is not applied twice.
 * `snapshotLsn`: of the last chunk. `touched`: 1 once an event was applied, so that rows of a chunk may be there already.
 * @typedef {{token: string, snapshotId: string, created: string, initSeq: number, initAt: number, chunks: number, rowsDone: number, streamSeq: number, lsn: number, seq: number, snapshotLsn: number, touched: number}} Place
 * @typedef {import("../contract/records.js").RangesStart} RangesStart
 * @typedef {import("../contract/records.js").RangesChunk} RangesChunk
 * @typedef {import("../stores/dialect.js").Statement} Statement
 * @typedef {import("./gathered.js").Gathered} Gathered
 */

/** @param {import("../stores/dialect.js").Dialect} dialect @param {Place} place @returns {Statement} */
const saved = (dialect, place) => dialect.save("rounds", "token", {
  token: place.token, snapshot_id: place.snapshotId, created: place.created, init_seq: place.initSeq, init_at: place.initAt,
  chunks: place.chunks, rows_done: place.rowsDone, stream_seq: place.streamSeq, lsn: place.lsn, seq: place.seq,
  snapshot_lsn: place.snapshotLsn, touched: place.touched,
});

/** @param {import("../stores/dialect.js").Dialect} dialect @param {string} token @returns {Statement} */
const forgetPlace = (dialect, token) => ({ sql: `DELETE FROM ${dialect.own("rounds")} WHERE token = ${dialect.parameter(1)}`, params: [[token]] });

/** How far a copy is; null if there is none. @param {import("./replica_state.js").ReplicaState} replica @param {string} token @returns {Promise<Place | null>} */
async function loadPlace(replica, token) {
  const { dialect } = replica;
  const names = "snapshot_id, created, init_seq, init_at, chunks, rows_done, stream_seq, lsn, seq, snapshot_lsn, touched";
  const [row] = await replica.query(`SELECT ${names} FROM ${dialect.own("rounds")} WHERE token = ${dialect.parameter(1)}`, [token]);
  if (row === undefined) return null;
  const [snapshotId, created, ...numbers] = row;
  const [initSeq, initAt, chunks, rowsDone, streamSeq, lsn, seq, snapshotLsn, touched] = numbers.map(Number);
  return {
    token, snapshotId: String(snapshotId), created: String(created), initSeq, initAt, chunks, rowsDone, streamSeq, lsn, seq,
    snapshotLsn, touched,
  };
}

/** Whether a table is to be copied in rounds: it is large, and the copy has its key; or such a copy has begun. @param {import("./replica_state.js").ReplicaState} replica @param {import("./source_stream.js").SourceStream} source @param {string} token */
export async function inRounds(replica, source, token) {
  if (replica.table(token).keyed !== 1 || replica.roundsFromRows === 0) return false;
  if ((await loadPlace(replica, token)) !== null) return true;
  const record = await source.record();
  return record !== null && (record.large.get(token) ?? 0) >= replica.roundsFromRows;
}

/**
 * Copy a table in rounds into its staging table, continuing a copy that an earlier session has begun. Throws RoundsRefused, and what
 * `gather` throws.
 * @param {import("./replica_state.js").ReplicaState} replica @param {import("./source_stream.js").SourceStream} source
 * @param {string} token @param {AbortSignal} signal @returns {Promise<Gathered>}
 */
export async function gatherInRounds(replica, source, token, signal) {
  const reader = new RoundsReader(replica, source, token, signal);
  try {
    return await reader.run();
  } catch (error) {
    const isOver = [RoundsRefused, SnapshotRefused, SnapshotUnusable, ApplyConflict].some((kind) => error instanceof kind);
    if (isOver) await replica.run([forgetPlace(replica.dialect, token)]);
    throw error;
  } finally {
    await reader.closeEvents();
  }
}

/** Reads chunks and events of one table. */
class RoundsReader {
  /** @type {RangesStart | null} */
  #start = null;
  /** @type {Place | null} */
  #place = null;
  /** @type {LenientStatements | null} */
  #statements = null;
  /** @type {import("./source_stream.js").Consumer | null} */
  #events = null;
  /** Messages of the stream that are read and not applied. @type {import("./source_stream.js").Message[]} */
  #waiting = [];
  /** Keys of rows that no message can carry. @type {Set<string>} */
  #unreadable = new Set();
  #part;
  #boundaries;

  /** @param {import("./replica_state.js").ReplicaState} replica @param {import("./source_stream.js").SourceStream} source @param {string} token @param {AbortSignal} signal */
  constructor(replica, source, token, signal) {
    this.replica = replica;
    this.source = source;
    this.token = token;
    this.signal = signal;
    this.#part = token + RANGES;
    this.#boundaries = new Boundaries(source, [cdcOfTable(token), CDC_NOTICES]);
  }

  /** Read until the copy is complete. @returns {Promise<Gathered>} */
  async run() {
    const { replica, source, token } = this;
    const consumer = await source.transport.consume(INIT, snapshotOfTable(this.#part), await this.#continue());
    try {
      let unanswered = 0;
      let heardAt = clock.now();
      for (;;) {
        const messages = await consumer.receive(LOOK_MS, this.signal);
        checkPublished(replica, token);
        if (messages.length > 0) heardAt = clock.now();
        else if (clock.now() - heardAt >= (this.#start === null ? ASK_AGAIN_MS : SILENT_MS)) {
          unanswered += 1;
          heardAt = clock.now();
          if (this.#start === null && unanswered === UNANSWERED_MAX) throw new RoundsRefused("nobody answers");
          this.#ask();
        }
        for (const message of messages) {
          const record = await decodeAnswer(source, message, replica.events.log);
          const gathered = record === null ? null : await this.#take(message, record);
          if (gathered !== null) return gathered;
        }
      }
    } finally {
      await consumer.close();
    }
  }

  // -- where to begin

  /** Take up a copy that has begun, or find a snapshot, or ask for one; return the INIT sequence to read from. */
  async #continue() {
    const { replica, source, token } = this;
    await source.require();
    const place = await loadPlace(replica, token);
    const used = replica.table(token).initSeq;
    if (place !== null && place.created === source.view.created && place.initSeq > used) {
      const start = await this.#startAt(place.initSeq);
      const isHeld = place.chunks === 0 || source.whyOutOfDate(place.streamSeq) === "";
      if (start !== null && start.snapshotId === place.snapshotId && isHeld) {
        const { shape } = await this.#setShape(start);
        if (await replica.lock.hold(() => replica.store.exists(shape.local))) {
          this.#start = start;
          this.#place = place;
          tellProgress(replica, token, place.rowsDone, start.rowsExpected || null);
          replica.events.log(`the copy of ${token} continues after ${place.rowsDone} rows`);
          return place.initAt + 1;
        }
      }
    }
    const message = await newestAnswer(source, initStart(this.#part), used);
    if (message !== null && (await newestAnswer(source, initError(this.#part), message.seq)) === null) return message.seq;
    const info = await source.transport.streamInfo(INIT);
    this.#ask();
    return (info?.state.last_seq ?? 0) + 1;
  }

  /** @param {number} initSeq */
  async #startAt(initSeq) {
    const message = await this.source.transport.message(INIT, { seq: initSeq });
    const record = message === null ? null : await decodeAnswer(this.source, message, () => {});
    return record?.kind === "ranges start" && record.stream === this.source.name ? record : null;
  }

  #ask() {
    this.replica.events.log(`asking for a snapshot of ${this.token} in rounds`);
    this.source.transport.publish(snapshotRequest(this.#part, this.source.name));
  }

  // -- one message of INIT

  /** @param {import("./source_stream.js").Message} message @param {import("../contract/records.js").SnapshotRecord} record @returns {Promise<Gathered | null>} */
  async #take(message, record) {
    const start = this.#start;
    const place = this.#place;
    if ("stream" in record && record.stream !== this.source.name) return null;
    if (record.kind === "ranges start") {
      if (record.snapshotId !== start?.snapshotId) await this.#begin(record, message.seq);
    } else if (record.kind === "error") {
      if (record.errorType === "ambiguous") return null;
      if (record.errorType === "no_key") throw new RoundsRefused(record.errorMessage);
      if (record.errorType === "table_changed" && start !== null) { // another one begins by itself
        this.#start = this.#place = null;
      } else if (start === null || !record.snapshotId || record.snapshotId === start.snapshotId) {
        throw new SnapshotRefused(`${record.errorType}: ${record.errorMessage}`);
      }
    } else if (start === null || place === null || record.snapshotId !== start.snapshotId) {
      return null; // the rest of a snapshot that began earlier
    } else if (record.kind === "ranges chunk") {
      if (record.chunk > place.chunks) throw new SnapshotUnusable(`chunk ${place.chunks} is missing`, { initSeq: place.initSeq });
      if (record.chunk === place.chunks) await this.#chunk(record, start, place, message.seq);
    } else if (record.kind === "meta") {
      if (record.batchCount !== place.chunks || record.rowCount !== place.rowsDone) {
        throw new SnapshotUnusable("the snapshot is incomplete", { initSeq: place.initSeq });
      }
      return this.#complete(start);
    }
    return null;
  }

  /** @param {RangesStart} start @param {number} initSeq */
  async #begin(start, initSeq) {
    const { replica, source, token } = this;
    const pk = start.columns.filter((column) => column.pk).map(({ name }) => name);
    if ([...pk].sort().join("\0") !== [...start.key].sort().join("\0")) {
      throw new RoundsRefused("its events name rows by another key than its primary key");
    }
    await makeStaging(replica, start);
    const { missingShape } = await this.#setShape(start);
    const place = {
      token, snapshotId: start.snapshotId, created: source.view.created, initSeq, initAt: initSeq, chunks: 0, rowsDone: 0,
      streamSeq: 0, lsn: 0, seq: -1, snapshotLsn: 0, touched: 0,
    };
    const { dialect } = replica;
    const made = [dialect.dropTable(missingShape.local), dialect.createTable(missingShape)].map((sql) => ({ sql, params: [[]] }));
    await replica.run([...made, saved(dialect, place)]);
    this.#start = start;
    this.#place = place;
    await this.closeEvents();
    tellProgress(replica, token, 0, start.rowsExpected || null);
  }

  /** @param {RangesStart} start */
  async #setShape(start) {
    this.#statements = new LenientStatements(this.replica.dialect, await stagingShape(this.replica, start));
    return this.#statements;
  }

  /** The statements of the copy that has begun. */
  get #made() {
    if (this.#statements === null) throw new Error("set with the start");
    return this.#statements;
  }

  /** @param {RangesChunk} chunk @param {RangesStart} start @param {Place} place @param {number} initSeq */
  async #chunk(chunk, start, place, initSeq) {
    const { replica } = this;
    if (place.chunks === 0) {
      await this.source.look();
      const reason = this.#whyUnusable(chunk, start);
      if (reason) throw new SnapshotUnusable(reason, { initSeq: place.initSeq });
    }
    await this.#checkPlace(chunk, place);
    if (place.chunks > 0) place = await this.#applyUntil(chunk.streamSeq, start, place);
    place = {
      ...place, initAt: initSeq, chunks: chunk.chunk + 1, rowsDone: place.rowsDone + chunk.rows.length, streamSeq: chunk.streamSeq,
      snapshotLsn: chunk.snapshotLsn,
    };
    const statements = this.#made;
    const rows = joined(statements.chunk(chunk.rows, place.touched === 1));
    if (place.touched === 1 && (await this.#incomplete(1)).length > 0) rows.push(...joined(statements.filled(chunk.rows)));
    await replica.run([...rows, saved(replica.dialect, place)]);
    this.#place = place;
    tellProgress(replica, this.token, place.rowsDone, start.rowsExpected || null);
  }

  /** Why the first chunk does not lead to the present. @param {RangesChunk} chunk @param {RangesStart} start */
  #whyUnusable(chunk, start) {
    const record = this.replica.table(this.token);
    if (!takes(record, start.version, chunk.streamSeq)) return "the snapshot is from before the table was published as it is now";
    if (chunk.streamSeq < record.neededSeq) return "the snapshot is from before the table had to be copied again";
    return this.source.whyOutOfDate(chunk.streamSeq);
  }

  /**
   * Throw SnapshotUnusable unless the chunk comes between the messages at its place. They are other ones if the stream was cut short
   * and has grown again since the bridge looked.
   * @param {RangesChunk} chunk @param {Place} place
   */
  async #checkPlace({ streamSeq, snapshotLsn }, place) {
    if (place.chunks > 0 && streamSeq === place.streamSeq && snapshotLsn === place.snapshotLsn) return; // of the same round
    const message = await this.source.messageOfABridge(streamSeq);
    const at = message === null ? null : bridgePosition(message.headers);
    const after = (await this.source.nextOfABridge(streamSeq, CDC_ALL))?.position ?? null;
    // LSNs of gap and publication events are not in the order of the rows' events
    const isLate = at !== null && at[2] !== GAP_RANK && at[0] >= snapshotLsn;
    const isEarly = after !== null && after[2] !== GAP_RANK && after[0] < snapshotLsn;
    if (isLate || isEarly) {
      throw new SnapshotUnusable("the stream has other messages at the snapshot's place", { initSeq: place.initSeq });
    }
  }

  // -- events

  /** Apply the table's events up to `seq`. @param {number} seq @param {RangesStart} start @param {Place} place @returns {Promise<Place>} */
  async #applyUntil(seq, start, place) {
    const { replica, source } = this;
    for (;;) {
      const following = await this.#boundaries.nextAfter(place.streamSeq);
      if (following === null || following.seq > seq) return place;
      if (this.#waiting.length === 0) {
        this.#events ??= await source.transport.consume(source.name, this.#boundaries.filters, place.streamSeq + 1);
        this.#waiting = await this.#events.receive(EVENTS_MS, this.signal);
        if (this.#waiting.length > 0) await source.checkJumps(place.streamSeq, this.#waiting, place.created);
      }
      /** @type {Statement[]} */
      const made = [];
      let taken = 0;
      for (const message of this.#waiting) {
        if (message.seq > seq || taken >= ROWS_MAX) break;
        taken += 1;
        for (const event of await source.decode(message)) place = this.#takeEvent(event, message.seq, start, place, made);
        place = { ...place, streamSeq: message.seq };
      }
      this.#waiting.splice(0, taken);
      if (taken > 0) {
        await replica.run([...joined(made), saved(replica.dialect, place)]);
        this.#place = place;
      } else if (this.#waiting.length > 0) {
        return place;
      }
    }
  }

  /** @param {import("../contract/records.js").Event} event @param {number} seq @param {RangesStart} start @param {Place} place @param {Statement[]} made @returns {Place} */
  #takeEvent(event, seq, start, place, made) {
    const { initSeq } = place;
    if (event.kind === "gap") {
      if (!event.ofTable || event.tables.includes(this.token)) {
        throw new SnapshotUnusable(`changes are permanently lost: ${event.reason}`, { neededSeq: seq, initSeq });
      }
      return place;
    }
    if (event.token !== this.token) return place;
    if (event.kind === "published") {
      const version = event.change === "removed" ? "" : event.version;
      if (!isOtherVersion(start.version, version)) return place;
      const told = { version, seq, reason: event.reason };
      throw new SnapshotUnusable(`it is published differently: ${event.reason}`, { initSeq, told });
    }
    if (event.kind === "schema") {
      const isSame = event.columns.length === start.columns.length &&
        event.columns.every(({ name, type }, i) => name === start.columns[i].name && type === start.columns[i].type);
      if (!isSame) throw new SnapshotUnusable("its columns changed", { neededSeq: seq, initSeq });
      return place;
    }
    if (event.lsn < place.lsn || (event.lsn === place.lsn && event.seq <= place.seq)) return place; // stored again
    try {
      made.push(...this.#made.of(event));
    } catch (error) {
      if (!(error instanceof UnknownColumn || error instanceof NamesNoRow)) throw error;
      throw new SnapshotUnusable(`a change does not fit its columns: ${error.message}`, { neededSeq: seq, initSeq });
    }
    return { ...place, lsn: event.lsn, seq: event.seq, touched: 1 };
  }

  /** Stop reading events. */
  async closeEvents() {
    const consumer = this.#events;
    this.#events = null;
    this.#waiting = [];
    await consumer?.close();
  }

  // -- the end

  /** @param {number} limit */
  #incomplete(limit) {
    return this.replica.query(this.#made.incomplete(limit));
  }

  /** Ask for incomplete rows until there is none, and hand over the copy. @param {RangesStart} start @returns {Promise<Gathered>} */
  async #complete(start) {
    const { replica } = this;
    const { dialect } = replica;
    const { missingShape, shape } = this.#made;
    for (let asked = 0; asked < ASKED_MAX && (await this.#incomplete(1)).length > 0; asked++) {
      for (let keys = await this.#incomplete(KEYS_MAX); keys.length > 0; keys = await this.#incomplete(KEYS_MAX)) {
        await this.#fill(start, keys);
      }
    }
    const place = this.#begun;
    // the join moves the copy on without this place
    await replica.run([{ sql: dialect.dropTable(missingShape.local), params: [[]] }, forgetPlace(dialect, this.token)]);
    /** @type {import("../contract/records.js").SnapshotStart} */
    const whole = {
      kind: "start", token: this.token, schema: start.schema, table: start.table, snapshotId: start.snapshotId,
      snapshotLsn: place.snapshotLsn, streamSeq: place.streamSeq, relationId: start.relationId, columns: start.columns,
      stream: start.stream, version: start.version,
    };
    return { start: whole, created: place.created, initSeq: place.initSeq, staging: shape, rows: place.rowsDone };
  }

  /** The place of the copy that has begun. */
  get #begun() {
    if (this.#place === null) throw new Error("set with the start");
    return this.#place;
  }

  /**
   * Ask for rows by their keys, and make just those right, each at the place of its answer. A row that no message can carry keeps its
   * unknown columns.
   * @param {RangesStart} start @param {unknown[][]} keys
   */
  async #fill(start, keys) {
    const isUnreadable = (/** @type {unknown[]} */ key) => this.#unreadable.has(keyText(key));
    await this.#leaveUnknown(keys.filter(isUnreadable));
    const waiting = [keys.filter((key) => !isUnreadable(key))];
    for (let some = waiting.shift(); some !== undefined; some = waiting.shift()) {
      if (some.length === 0) continue;
      const body = this.#body(start, some);
      this.replica.events.log(`asking for ${some.length} rows of ${this.token} that lack values`);
      const chunks = body.length <= BODY_BYTES_MAX || some.length === 1 ? await this.#answer(start, body) : null;
      if (chunks !== null) {
        await this.#replace(start, some, chunks);
      } else if (some.length > 1) {
        const middle = Math.floor(some.length / 2);
        waiting.unshift(some.slice(0, middle), some.slice(middle));
      } else {
        this.replica.events.log(`a row's values stay unknown in ${this.token}: no message can carry it`);
        this.#unreadable.add(keyText(some[0]));
        await this.#leaveUnknown(some);
      }
    }
  }

  /** @param {RangesStart} start @param {unknown[][]} keys */
  #body(start, keys) {
    const names = this.#made.missingShape.columns.map(({ name }) => name);
    const order = start.key.map((name) => names.indexOf(name));
    return requestBody(keys.map((key) => order.map((i) => key[i])));
  }

  /** The rows that a request names; null if one of them cannot be sent. @param {RangesStart} start @param {Uint8Array} body */
  #answer(start, body) {
    const { source, replica, token, signal } = this;
    const place = this.#begun;
    return askByKey(source, token, body, {
      check: (record) => {
        if (record.schemaId !== start.schemaId || record.version !== start.version) {
          throw new SnapshotUnusable("it is published differently", { initSeq: place.initSeq });
        }
      },
      sinceSeq: place.streamSeq,
      tooOld: () => source.checkPlace({ seq: place.streamSeq, created: place.created }),
      look: () => checkPublished(replica, token),
      log: replica.events.log, signal,
    });
  }

  /** @param {unknown[][]} keys */
  async #leaveUnknown(keys) {
    if (keys.length > 0) await this.replica.run([this.#made.notMissing(keys)]);
  }

  /** @param {RangesStart} start @param {unknown[][]} keys @param {readonly RangesChunk[]} chunks */
  async #replace(start, keys, chunks) {
    const { replica } = this;
    const newest = chunks[chunks.length - 1];
    await this.#checkPlace(newest, this.#begun);
    const before = await this.#applyUntil(newest.streamSeq, start, this.#begun);
    const place = { ...before, streamSeq: newest.streamSeq, snapshotLsn: newest.snapshotLsn, touched: 1 };
    const filled = joined(this.#made.chunk(chunks.flatMap(({ rows }) => rows), true));
    await replica.run([...this.#made.forget(keys), ...filled, saved(replica.dialect, place)]);
    this.#place = place;
  }
}

/** @param {unknown[]} key */
const keyText = (key) => key.map((value) => `${typeof value}:${value}`).join("\0");
