/**
 * Applies the events after a copy's snapshot up to the live tables' checkpoint, and switches the copy in there. While no table is
 * live there is no checkpoint: the copy that is complete first sets it.
 */

import { laterPosition, START } from "../contract/positions.js";
import { CDC_NOTICES, cdcOfTable } from "../contract/subjects.js";
import { CutOff, follow, Track } from "../rules/track.js";
import { lacks } from "../stores/shapes.js";
import { Boundaries, Incomplete } from "./boundaries.js";
import { checkPublished, SnapshotUnusable } from "./gathered.js";
import { asLive, asTold, localOf } from "./state.js";

/** Changes per local transaction, and the most for which the live tables may stand still. */
const ROWS_MAX = 5_000;
const LOOK_MS = 100;

/**
 * Apply the events after the snapshot, and make the copy a live table at the live tables' checkpoint.
 * @param {import("./replica_state.js").ReplicaState} replica @param {import("./source_stream.js").SourceStream} source
 * @param {import("./following.js").Follower} follower @param {import("./gathered.js").Gathered} gathered
 */
export async function join(replica, source, follower, gathered) {
  const { start } = gathered;
  const before = await replica.shapeNow(replica.table(start.token)); // asked before the live tables stand still
  follower.joiners += 1;
  const filters = [cdcOfTable(start.token), CDC_NOTICES];
  const consumer = await source.transport.consume(source.name, filters, start.streamSeq + 1);
  try {
    await source.checkPlace({ seq: start.streamSeq, created: gathered.created });
    await new Joiner(replica, source, follower, gathered, before, new Events(replica, source, consumer, filters, gathered, follower.signal)).run();
  } catch (error) {
    if (error instanceof CutOff) throw new SnapshotUnusable(error.stale.reason, { neededSeq: error.stale.neededSeq });
    if (error instanceof Incomplete) throw new SnapshotUnusable("a gap cut off a transaction of the table", { neededSeq: error.seq });
    throw error;
  } finally {
    follower.joiners -= 1;
    await consumer.close();
  }
}

/** Joins one copy with the live tables. */
class Joiner {
  /**
   * @param {import("./replica_state.js").ReplicaState} replica @param {import("./source_stream.js").SourceStream} source
   * @param {import("./following.js").Follower} follower @param {import("./gathered.js").Gathered} gathered
   * @param {import("../stores/shapes.js").TableShape} before The shape of the table that the copy replaces.
   * @param {Events} events
   */
  constructor(replica, source, follower, gathered, before, events) {
    this.replica = replica;
    this.source = source;
    this.follower = follower;
    this.gathered = gathered;
    this.before = before;
    this.events = events;
    this.track = events.track;
  }

  /** Apply events until the copy is live. */
  async run() {
    const { replica, track, events } = this;
    for (;;) {
      const { checkpoint } = replica;
      checkPublished(replica, this.gathered.start.token);
      await events.receive(LOOK_MS);
      const taken = await events.take(checkpoint === null ? null : checkpoint.cursor.streamSeq);
      if (track.isDirty) await replica.run(track.drain());
      const isDone = checkpoint === null ? await this.#beFirst(taken === 0) : (await this.#isNear(checkpoint)) && (await this.#join());
      if (isDone) return;
      if (taken === 0 && replica.checkpoint === checkpoint) await replica.moved.wait(this.follower.signal, LOOK_MS);
    }
  }

  /** Set the replica's first checkpoint, where this copy is what the source was at some LSN. @param {boolean} isIdle */
  async #beFirst(isIdle) {
    const { replica, track } = this;
    if (!this.events.isConsistent && !(isIdle && (await this.#skipToTheEnd()))) return false;
    return replica.lock.hold(async () => {
      if (replica.checkpoint !== null) return false;
      await this.#goLive({
        stream: this.source.name, created: this.gathered.created, cursor: track.closed, lastMessage: track.lastMessage,
      });
      return true;
    });
  }

  /** Skip to the stream's end if the bridge's record proves that the snapshot's LSN is passed there; no event does. */
  async #skipToTheEnd() {
    const { source, track } = this;
    const record = await source.record(); // must be read before the stream's end
    await source.checkPlace({ seq: Math.max(track.headSeq, this.events.seenSeq), created: this.gathered.created });
    const last = await this.events.boundaries.endWithoutMore(track.headSeq);
    if (last === null || !(await this.events.boundaries.isWholeAt(last))[0]) return false;
    const proven = record !== null && record.lastSeq <= last ? record.confirmedLsn : 0;
    if (Math.max(track.closed.position[0], proven) < this.gathered.start.snapshotLsn) return false;
    track.close();
    track.advance(last, await source.lastMessageAt(last, track.lastMessage));
    return true;
  }

  /** Whether so little is left up to the checkpoint that the live tables may stand still for it. @param {import("./state.js").Checkpoint} checkpoint */
  async #isNear(checkpoint) {
    if (checkpoint.cursor.streamSeq - this.track.headSeq <= ROWS_MAX) return true;
    const following = await this.events.boundaries.nextAfter(this.track.headSeq);
    return following === null || following.seq > checkpoint.cursor.streamSeq;
  }

  /** Come to the live tables' checkpoint while they stand still, and go live; false when it is no place to do so. */
  async #join() {
    const { replica, source, track, events } = this;
    const { start, created } = this.gathered;
    return replica.lock.hold(async () => {
      const { checkpoint } = replica;
      if (checkpoint === null || checkpoint.created !== created || this.follower.isHeld) return false;
      const { streamSeq, position } = checkpoint.cursor;
      // a copy that was to be the first may be ahead of the one that was: the live tables come to where it is
      if (streamSeq < Math.max(start.streamSeq, track.headSeq) || !this.follower.hasReached(start.snapshotLsn)) return false;
      const live = new Boundaries(source, [CDC_NOTICES, ...Array.from(replica.shapes.keys(), cdcOfTable)]);
      const [isWhole, lsn] = await live.isWholeAt(streamSeq);
      if (!isWhole) return false;
      await events.takeThrough(streamSeq, lsn);
      await source.checkPlace({ seq: events.seenSeq, created });
      track.close();
      await this.#goLive({ ...checkpoint, cursor: { streamSeq, position: laterPosition(position, track.closed.position) } });
      return true;
    });
  }

  /** Make the copy the live table at `checkpoint`. The lock is held. @param {import("./state.js").Checkpoint} checkpoint */
  async #goLive(checkpoint) {
    const { replica, track } = this;
    const { start, staging, initSeq, rows } = this.gathered;
    checkPublished(replica, start.token);
    const record = replica.table(start.token);
    const local = localOf(record);
    const rest = track.drain();
    const followed = track.tables.get(start.token);
    if (followed === undefined) throw new Error(`${start.token} is not followed`);
    const shape = { ...followed.shape, local };
    const { dialect } = replica;
    const missing = lacks(this.before, shape);
    const statements = record.state !== "waiting" && missing !== null
      ? [...Array.from(missing, ([name, type]) => dialect.addColumn(local, name, type)), ...dialect.refill(shape, staging.local)]
      : [dialect.dropTable(local), ...dialect.renameTable(staging.local, local[1])];
    let live = asLive(record, shape, start, initSeq);
    if (start.version) live = asTold(live, { version: start.version, seq: start.streamSeq, reason: "" });
    const told = track.told.get(start.token);
    if (told !== undefined) live = asTold(live, told);
    const switched = statements.map((sql) => ({ sql, params: [[]], token: start.token }));
    await replica.goLive(live, shape, [...rest, ...switched], checkpoint);
    replica.events.log(`table is live: ${start.token}, ${rows} rows of snapshot ${start.snapshotId}`);
  }
}

/** A table's events after its snapshot, taken as far as they are wanted. */
class Events {
  /** @type {import("./source_stream.js").Message[]} */
  #waiting = [];

  /**
   * @param {import("./replica_state.js").ReplicaState} replica @param {import("./source_stream.js").SourceStream} source
   * @param {import("./source_stream.js").Consumer} consumer @param {readonly string[]} filters
   * @param {import("./gathered.js").Gathered} gathered @param {AbortSignal} signal
   */
  constructor(replica, source, consumer, filters, gathered, signal) {
    const { start, staging, created } = gathered;
    const table = follow(replica.dialect, staging, start.snapshotLsn, start.version);
    this.track = new Track(replica.dialect, { streamSeq: start.streamSeq, position: START }, new Map([[start.token, table]]));
    this.boundaries = new Boundaries(source, filters);
    this.source = source;
    this.consumer = consumer;
    this.signal = signal;
    this.created = created;
    this.snapshotLsn = start.snapshotLsn;
    /** Sequence of the last message received. */
    this.seenSeq = start.streamSeq;
  }

  /** Whether the copy is what the source was at some LSN: only whole transactions are taken, up to the snapshot's LSN. */
  get isConsistent() {
    return this.track.openLsn === null && this.track.closed.position[0] >= this.snapshotLsn;
  }

  /** Receive messages unless some wait to be taken. @param {number} ms */
  async receive(ms) {
    if (this.#waiting.length > 0) return;
    this.#waiting = await this.consumer.receive(ms, this.signal);
    if (this.#waiting.length === 0) return;
    await this.source.checkJumps(this.seenSeq, this.#waiting, this.created);
    this.seenSeq = this.#waiting[this.#waiting.length - 1].seq;
  }

  /** Take messages up to sequence `limit`, or without one until the copy is consistent; return how many were taken. @param {number | null} limit */
  async take(limit) {
    let taken = 0;
    for (const message of this.#waiting) {
      if (limit !== null && message.seq > limit) break;
      const events = await this.source.decode(message);
      if (events.length > 0) {
        await this.boundaries.closeBefore(this.track, message.seq, events);
        if (limit === null && this.isConsistent) break;
        this.#take(message, events);
      }
      taken += 1;
      if (this.track.gathered >= ROWS_MAX) break;
    }
    this.#waiting.splice(0, taken);
    return taken;
  }

  /** Take everything up to `seq`, and what comes after it of the transaction of `lsn`. @param {number} seq @param {number | null} lsn */
  async takeThrough(seq, lsn) {
    for (;;) {
      const following = await this.boundaries.nextAfter(this.track.headSeq);
      if (following === null || (following.seq > seq && following.lsn !== lsn)) return;
      await this.receive(LOOK_MS);
      while (this.#waiting.length > 0) {
        const [message] = this.#waiting;
        const events = await this.source.decode(message);
        if (events.length > 0 && message.seq > seq && events[0].lsn !== lsn) return;
        this.#waiting.shift();
        if (events.length > 0) this.#take(message, events);
      }
    }
  }

  /** @param {import("./source_stream.js").Message} message @param {readonly import("../contract/records.js").Event[]} events */
  #take(message, events) {
    this.track.take(message.seq, events, message.headers);
    for (const [token, { reason, neededSeq }] of this.track.stale) {
      throw new SnapshotUnusable(reason, { neededSeq, told: this.track.told.get(token) });
    }
  }
}
