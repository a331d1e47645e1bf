/** Where transactions end in the stream, for a reader of some of its subjects. Only a gap can follow an incomplete transaction. */

import { bridgePosition, GAP_RANK } from "../contract/positions.js";
import { CDC_ALL } from "../contract/subjects.js";

/** A gap follows an incomplete transaction, whose rest will never come. */
export class Incomplete extends Error {
  /** @param {number} lsn @param {number} seq The gap's sequence. */
  constructor(lsn, seq) {
    super(`${lsn}`);
    this.lsn = lsn;
    this.seq = seq;
  }
}

/** @param {import("../contract/records.js").Event} event */
export const isBridgesGap = (event) => event.kind === "gap" && !event.ofTable;

/** Answers whether a transaction is complete, up to some message, on the subjects `filters`. */
export class Boundaries {
  #source;

  /** @param {import("./source_stream.js").SourceStream} source @param {readonly string[]} filters */
  constructor(source, filters) {
    this.#source = source;
    this.filters = filters;
  }

  /** The next message of a bridge after `seq` on these subjects; null when there is none yet. @param {number} seq */
  async nextAfter(seq) {
    const found = await Promise.all(this.filters.map((pattern) => this.#source.nextOfABridge(seq, pattern)));
    /** @type {{seq: number, lsn: number, isGap: boolean} | null} */
    let first = null;
    for (const one of found) {
      if (one !== null && (first === null || one.seq < first.seq)) {
        first = { seq: one.seq, lsn: one.position[0], isGap: one.position[2] === GAP_RANK };
      }
    }
    return first;
  }

  /** Whether the transaction of `lsn`, read up to `seq`, has ended and has no more on these subjects. @param {number} lsn @param {number} seq */
  async isWhole(lsn, seq) {
    return (await this.#hasEnded(lsn)) && !(await this.#mayHaveMore(lsn, seq));
  }

  /** Whether no transaction with messages up to `seq` has more here, and the transaction at `seq`. @param {number} seq @returns {Promise<[isWhole: boolean, lsn: number | null]>} */
  async isWholeAt(seq) {
    const message = await this.#source.messageOfABridge(seq);
    const position = message === null ? null : bridgePosition(message.headers);
    return position === null ? [true, null] : [await this.isWhole(position[0], seq), position[0]];
  }

  /**
   * Close the track's open transaction if the events of the message at `seq` do not belong to it. Throws Incomplete when they
   * are a gap and the transaction has not ended before it.
   * @param {import("../rules/track.js").Track} track @param {number} seq @param {readonly import("../contract/records.js").Event[]} events
   */
  async closeBefore(track, seq, events) {
    const [first] = events;
    const { openLsn } = track;
    if (openLsn === null || (openLsn === first.lsn && !isBridgesGap(first))) return;
    if (first.kind === "gap" && !(await this.#hasEnded(openLsn, seq)) && !track.leavesOut(openLsn, seq - 1)) {
      throw new Incomplete(openLsn, seq);
    }
    track.close();
  }

  /** The stream's last sequence as of the last look, if there is no message on these subjects between `seq` and it. @param {number} seq */
  async endWithoutMore(seq) {
    const last = this.#source.view.lastSeq;
    const following = await this.nextAfter(seq);
    return following === null || following.seq > last ? last : null;
  }

  /** @param {number} lsn @param {number} [beforeSeq] */
  async #hasEnded(lsn, beforeSeq) {
    await this.#source.require();
    const message = await this.#source.messageOfABridge(beforeSeq === undefined ? this.#source.view.lastSeq : beforeSeq - 1);
    const position = message === null ? null : bridgePosition(message.headers);
    // deleted by hand, another transaction's, or a gap of the bridge's own: nothing can be waited for
    if (message === null || position === null || position[0] !== lsn || position[2] === GAP_RANK) return true;
    return this.#source.endsItsTransaction(message);
  }

  /** JetStream looks for one filter per request, so all subjects are asked first. @param {number} lsn @param {number} seq */
  async #mayHaveMore(lsn, seq) {
    const message = await this.#source.transport.message(this.#source.name, { seq: seq + 1, next_by_subj: CDC_ALL });
    if (message === null) return false;
    const position = bridgePosition(message.headers);
    if (position !== null && position[0] !== lsn && position[2] !== GAP_RANK) return false;
    const following = await this.nextAfter(seq); // also after a foreign message, which proves nothing
    return following !== null && (following.lsn === lsn || following.isGap);
  }
}
