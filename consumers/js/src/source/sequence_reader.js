/**
 * Reads a stream's messages from a sequence on, in order, each once, without a consumer: for a user who may make none.
 *
 * A consumer can deliver a stream to any subject of its account, so programs that nobody trusts, such as pages, may not make one.
 * They ask for stored messages, which the leader of the stream answers: another server may be behind, and would hide messages. Dense
 * runs are asked for by their sequences, many at once; where others' messages lie between, JetStream is asked for the next one.
 */

import { matches, publishPrefix } from "../contract/subjects.js";
import { Transient } from "../errors.js";
import { News } from "../mirror/tasks.js";

/** Requests that are under way at the same time, at most. */
const WINDOW_MAX = 256;
/** A window of which fewer messages are wanted is too wide. */
const DENSE = 1 / 16;
/** How often to look for news that nobody tells, and how often once somebody has told some. */
const [LOOK_MS, LOOK_WHEN_TOLD_MS] = [500, 5_000];

/** @implements {Required<import("../mirror/source_stream.js").Consumer>} */
export class SequenceReader {
  #transport;
  #stream;
  #filters;
  #at;
  #window = 1;
  #created = "";
  /** The stream's last sequence as of the last look. */
  #last = 0;
  #isAtEnd = false;
  #news = new News();
  /** Whether there may be more than at the last look. */
  #isDue = true;
  #lookMs = LOOK_MS;
  #lookedAt = 0;
  #subscriptions;

  /**
   * @param {import("@nats-io/nats-core").NatsConnection} nats @param {import("../mirror/source_stream.js").Transport} transport
   * @param {string} stream @param {readonly string[]} filters @param {number} startSeq
   */
  constructor(nats, transport, stream, filters, startSeq) {
    this.#transport = transport;
    this.#stream = stream;
    this.#filters = filters;
    this.#at = startSeq;
    // a word that something is new, where the account lets these subjects in; what it says is read from the stream
    this.#subscriptions = filters.map((pattern) => nats.subscribe(publishPrefix(stream) + pattern, {
      callback: (error) => {
        if (error) return;
        this.#lookMs = LOOK_WHEN_TOLD_MS;
        this.#isDue = true;
        this.#news.ring();
      },
    }));
  }

  get isAtEnd() {
    return this.#isAtEnd;
  }

  /** @param {number} ms @param {AbortSignal} signal */
  async receive(ms, signal) {
    const until = performance.now() + ms;
    for (;;) {
      if (!this.#isAtEnd || this.#isDue || performance.now() >= this.#lookedAt + this.#lookMs) {
        const messages = await this.#read();
        if (messages.length > 0) return messages;
      }
      const now = performance.now();
      if (now >= until) return [];
      if (this.#isAtEnd && !this.#isDue) await this.#news.wait(signal, Math.min(until, this.#lookedAt + this.#lookMs) - now);
    }
  }

  /** Messages of the next sequences; none if none of them is wanted. */
  async #read() {
    if (this.#at > this.#last) await this.#look();
    /** @type {import("../mirror/source_stream.js").Message[]} */
    const found = this.#at > this.#last ? [] : this.#window === 1 ? await this.#next(this.#last) : await this.#run(this.#last);
    this.#isAtEnd = this.#at > this.#last;
    return found;
  }

  async #look() {
    this.#isDue = false;
    this.#lookedAt = performance.now();
    const info = await this.#transport.streamInfo(this.#stream); // the leader's: what it has now is all there now
    const created = info?.created ?? "";
    const last = info?.state.last_seq ?? 0;
    const isCut = this.#created !== "" && (created !== this.#created || last < this.#at - 1);
    if (!created || isCut) {
      throw new Transient(`stream ${this.#stream} is not what it was`, { code: "WB214" });
    }
    this.#created = created;
    this.#last = last;
  }

  /** The next wanted message up to `last`. @param {number} last */
  async #next(last) {
    const next = await Promise.all(this.#filters.map((pattern) => this.#transport.message(this.#stream, { seq: this.#at, next_by_subj: pattern })));
    const found = next.filter((message) => message !== null && message.seq <= last).sort((a, b) => (a?.seq ?? 0) - (b?.seq ?? 0));
    const [first] = found;
    if (!first) {
      this.#at = last + 1;
      return [];
    }
    this.#at = first.seq + 1;
    this.#window = 2;
    return [first];
  }

  /** The wanted messages of a run of sequences up to `last`. @param {number} last */
  async #run(last) {
    const end = Math.min(last, this.#at + this.#window - 1);
    const asked = Array.from({ length: end - this.#at + 1 }, (_, i) => this.#transport.message(this.#stream, { seq: this.#at + i }));
    /** @type {import("../mirror/source_stream.js").Message[]} */
    const found = [];
    for (const message of await Promise.all(asked)) { // null where a message was deleted
      if (message !== null && this.#filters.some((pattern) => matches(pattern, message.subject))) found.push(message);
    }
    this.#at = end + 1;
    this.#window = found.length >= asked.length * DENSE ? Math.min(2 * this.#window, WINDOW_MAX) : 1;
    return found;
  }

  async close() {
    for (const subscription of this.#subscriptions) subscription.unsubscribe();
  }
}
