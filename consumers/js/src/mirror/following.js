/** Follows the live tables: applies events in local transactions of whole source transactions, each with its checkpoint. */

import { CDC_ALL, CDC_NOTICES, cdcOfTable } from "../contract/subjects.js";
import { ApplyConflict, OutOfDate } from "../errors.js";
import { CutOff, Track } from "../rules/track.js";
import { Boundaries, Incomplete, isBridgesGap } from "./boundaries.js";
import { clock } from "./clock.js";
import { Changed, LocalTransaction } from "./replica_state.js";
import { placeOf } from "./state.js";

/** Changes after which a local transaction ends at the next end of a source transaction. */
const ROWS_MAX = 1_000;
/** Changes of one transaction that are kept in memory before they go to the store. */
const FLUSH_ROWS = 5_000;
const IDLE_MS = 500;
/** While nothing comes, the checkpoint moves this often over messages on other subjects. */
const SCAN_EVERY_MS = 5_000;

/** One run over the stream, from one checkpoint and with one set of live tables. @typedef {{track: Track, local: LocalTransaction, boundaries: Boundaries, created: string, generation: number}} Run */

/** Follows all live tables of a replica. */
export class Follower {
  /** Copies that wait for the checkpoint to move. */
  joiners = 0;
  /** Every transaction below was stored, says the bridge's record, and the replica has read that far. */
  provenLsn = 0;
  #gapSeq = 0;
  /** @type {Map<number, number>} */
  #voids = new Map();
  /** @type {Map<string, [number, import("../rules/track.js").Stale]>} */
  #staleFrom = new Map();
  #scannedAt = 0;
  /** Sequence of the last message received, foreign ones included: deleting it afterwards harms nothing. */
  #seenSeq = 0;

  /**
   * @param {import("./replica_state.js").ReplicaState} replica @param {import("./source_stream.js").SourceStream} source
   * @param {import("./holds.js").Holds} holds @param {boolean} everything All tables of the bridge are kept: one filter is enough.
   * @param {AbortSignal} signal
   */
  constructor(replica, source, holds, everything, signal) {
    this.replica = replica;
    this.source = source;
    this.holds = holds;
    this.everything = everything;
    this.signal = signal;
  }

  /** Whether a verification compares the replica with its source, or is about to. */
  get isHeld() {
    return this.holds.wanted !== null;
  }

  /** Whether the live tables contain every transaction below `lsn`. @param {number} lsn */
  hasReached(lsn) {
    const { checkpoint } = this.replica;
    return checkpoint !== null && Math.max(checkpoint.cursor.position[0], this.provenLsn) >= lsn;
  }

  /**
   * Wait until it is so, or until no table is live. `lsn` is of the history that the stream tells at `afterSeq`: behind a later gap
   * LSNs may be lower, and perhaps none ever comes as far, so then there is nothing to wait for.
   * @param {number} lsn @param {number} afterSeq
   */
  async waitFor(lsn, afterSeq) {
    this.joiners += 1;
    try {
      await this.replica.moved.until(
        this.signal, () => this.replica.checkpoint === null || this.hasReached(lsn) || this.#gapSeq > afterSeq,
      );
    } finally {
      this.joiners -= 1;
    }
  }

  /** Follow until an error. */
  async run() {
    const { replica, source } = this;
    for (;;) {
      const { checkpoint, generation } = replica;
      if (checkpoint === null) {
        await replica.moved.until(this.signal, () => replica.checkpoint !== null || replica.generation !== generation);
        continue;
      }
      const filters = this.everything ? [CDC_ALL] : [...Array.from(replica.shapes.keys(), cdcOfTable), CDC_NOTICES];
      const track = new Track(replica.dialect, checkpoint.cursor, replica.followed(), {
        voids: this.#voids, staleFrom: this.#staleFrom, lastMessage: checkpoint.lastMessage,
      });
      // filters, track and local transactions are of one generation: a copy may go live before the consumer is open
      const local = new LocalTransaction(replica, track);
      const run = { track, local, boundaries: new Boundaries(source, filters), created: checkpoint.created, generation };
      const consumer = await source.transport.consume(source.name, filters, checkpoint.cursor.streamSeq + 1);
      try {
        await source.checkPlace(placeOf(checkpoint));
        try {
          await this.#apply(consumer, run);
        } finally {
          await local.rollBack(); // before anything else is stored
        }
      } catch (error) {
        if (error instanceof Changed) continue;
        if (error instanceof Incomplete) this.#voids.set(error.lsn, error.seq);
        else if (error instanceof CutOff) this.#staleFrom.set(error.token, [error.lsn, error.stale]);
        else if (error instanceof ApplyConflict) {
          // a change does not match exactly one row: its key is not unique, or somebody else wrote to the store
          await replica.noteConflict(error.token, error.reason, error.isDuplicate ? false : undefined);
        } else if (error instanceof OutOfDate) {
          replica.events.log(`the replica is out of date at ${checkpoint.cursor.streamSeq}: ${error.message}`);
          this.provenLsn = 0;
          await replica.forget(error.message);
        } else throw error;
      } finally {
        await consumer.close();
      }
    }
  }

  /** @param {import("./source_stream.js").Consumer} consumer @param {Run} run */
  async #apply(consumer, run) {
    const { source, replica } = this;
    const { track } = run;
    this.#seenSeq = track.headSeq;
    for (;;) {
      const messages = await consumer.receive(IDLE_MS, this.signal);
      if (messages.length > 0) {
        await source.checkJumps(this.#seenSeq, messages, run.created);
        replica.events.received(messages[messages.length - 1]);
        for (const message of messages) {
          const events = await source.decode(message);
          if (events.length === 0) continue;
          if (track.openLsn !== events[0].lsn || events[0].kind === "gap") await this.#takeBoundary(message.seq, events, run);
          track.take(message.seq, events, message.headers);
          if (track.gathered >= FLUSH_ROWS && track.openLsn !== null) await run.local.flush();
        }
        this.#seenSeq = messages[messages.length - 1].seq;
      }
      const { openLsn } = track;
      if (openLsn !== null && (consumer.isAtEnd || messages.length === 0)) {
        if (await run.boundaries.isWhole(openLsn, track.headSeq)) track.close();
      }
      if (track.openLsn === null) {
        if (track.isDirty) await run.local.commit();
        if (messages.length === 0) {
          await this.#idle(run);
          if (replica.generation !== run.generation) throw new Changed();
        }
        if (consumer.isAtEnd) replica.events.caughtUp();
      }
    }
  }

  /** End local transactions, and answer verifications, before the first event of a transaction, or before a gap. @param {number} seq @param {readonly import("../contract/records.js").Event[]} events @param {Run} run */
  async #takeBoundary(seq, events, run) {
    const { track } = run;
    const isGap = isBridgesGap(events[0]);
    if (track.openLsn !== events[0].lsn || isGap) {
      await run.boundaries.closeBefore(track, seq, events);
      if (track.gathered >= ROWS_MAX) await run.local.commit();
      if (this.holds.wanted !== null) await this.#pauseBefore(events[0].lsn, run);
    }
    if (isGap) {
      this.provenLsn = 0;
      this.#gapSeq = seq;
    }
  }

  // -- while nothing comes

  /** Answer a verification, or move the checkpoint over messages on other subjects. @param {Run} run */
  async #idle(run) {
    const hold = this.holds.wanted;
    const now = clock.now();
    if (hold !== null && hold.lsn === 0) await this.holds.stay(hold, "held");
    else if (hold !== null || this.joiners > 0 || this.#seenSeq > run.track.headSeq || now - this.#scannedAt >= SCAN_EVERY_MS) {
      this.#scannedAt = now;
      if ((await this.#scan(run)) && hold !== null && this.hasReached(hold.lsn)) await this.#stay(hold);
    }
  }

  /** Move the checkpoint to the stream's end unless events of the live tables come before it. True if it is there. @param {Run} run */
  async #scan(run) {
    const { source, replica } = this;
    const seq = run.track.closed.streamSeq;
    const record = await source.record(); // must be read before the stream's end
    await source.checkPlace({ seq: Math.max(seq, this.#seenSeq), created: run.created });
    const last = await run.boundaries.endWithoutMore(seq);
    if (last === null) return false;
    const known = run.track.lastMessage;
    const lastMessage = await source.lastMessageAt(last, known);
    const isNew = (lastMessage.seq === 0 || known.seq === 0) && lastMessage.seq !== known.seq;
    if (last > seq || isNew) {
      run.track.advance(last, lastMessage);
      await run.local.commit();
    }
    if (record !== null && this.#gapSeq <= record.lastSeq && record.lastSeq <= last && record.confirmedLsn > this.provenLsn) {
      this.provenLsn = record.confirmedLsn;
      replica.moved.ring();
    }
    return true;
  }

  // -- verifications

  /** Stay before the transaction of `lsn` while a verification compares at or below it. @param {number} lsn @param {Run} run */
  async #pauseBefore(lsn, run) {
    for (let hold = this.holds.wanted; hold !== null && (hold.lsn === 0 || lsn >= hold.lsn); hold = this.holds.wanted) {
      if (run.track.isDirty) await run.local.commit();
      await this.#stay(hold);
    }
  }

  /** @param {import("./holds.js").Hold} hold */
  async #stay(hold) {
    const { checkpoint } = this.replica;
    const isMissed = hold.lsn > 0 && checkpoint !== null && checkpoint.cursor.position[0] >= hold.lsn;
    await this.holds.stay(hold, isMissed ? "missed" : hold.lsn > 0 ? "reached" : "held");
  }
}
