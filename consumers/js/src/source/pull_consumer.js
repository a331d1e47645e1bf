/**
 * Reads a stream's messages from a sequence on, in order, each once, no faster than the reader takes them.
 *
 * The consumer keeps no position: the reader remembers the sequence, and makes a new consumer from there after any fault. A client
 * library that mends its consumers by itself may begin earlier than it was asked to; here nothing is mended.
 */

import { Transient } from "../errors.js";
import { breath, News } from "../mirror/tasks.js";

/** Messages requested at a time; at most twice as many wait here. */
const BATCH = 1_000;
const BATCH_BYTES = 4 * 1024 * 1024;
const EXPIRES_MS = 30_000;
const HEARTBEAT_MS = 5_000;
const SILENCE_MS = 3 * HEARTBEAT_MS;
/** The end of a pull: the next message would exceed the byte limit, or the pull is complete. */
const ENDS_OF_PULLS = /axBytes|Batch Completed/;

/** @implements {Required<import("../mirror/source_stream.js").Consumer>} */
export class PullConsumer {
  /** @type {import("../mirror/source_stream.js").Message[]} */
  #waiting = [];
  #news = new News();
  /** Messages that the server may still send. */
  #asked = 0;
  #consumerSeq = 0;
  #fault = "";
  #heardAt = performance.now();
  #pulls = 0;
  #nats;
  #stream;
  #next;
  #pending;
  #remove;
  #inbox;
  #subscription;

  /**
   * @param {import("@nats-io/nats-core").NatsConnection} nats @param {string} stream @param {string} next The subject that asks for more.
   * @param {number} pending Messages that the stream has for the consumer. @param {() => Promise<void>} remove
   */
  constructor(nats, stream, next, pending, remove) {
    this.#nats = nats;
    this.#stream = stream;
    this.#next = next;
    this.#pending = pending;
    this.#remove = remove;
    this.#inbox = `_INBOX.${crypto.randomUUID().replaceAll("-", "")}`;
    this.#subscription = nats.subscribe(`${this.#inbox}.*`, {
      callback: (error, message) => {
        if (error) this.#fault = error.message;
        else this.#onMessage(message);
        this.#news.ring();
      },
    });
  }

  get isAtEnd() {
    return this.#waiting.length === 0 && this.#pending === 0;
  }

  /** @param {number} ms @param {AbortSignal} signal */
  async receive(ms, signal) {
    if (this.#waiting.length === 0) {
      this.#pull();
      const until = performance.now() + ms;
      while (this.#waiting.length === 0 && !this.#fault) {
        const left = until - performance.now();
        if (left <= 0) break;
        await this.#news.wait(signal, left);
        if (this.#waiting.length === 0) this.#pull();
      }
    }
    // more may have arrived while the reader was busy: one local transaction for all of it, and not one each
    for (let seen = 0; seen < this.#waiting.length && this.#waiting.length < BATCH; ) {
      seen = this.#waiting.length;
      await breath();
    }
    if (!this.#fault && this.#waiting.length === 0 && this.#asked > 0 && performance.now() - this.#heardAt > SILENCE_MS) {
      this.#fault = `no message and no heartbeat for ${SILENCE_MS / 1000} s`;
    }
    if (this.#fault) throw new Transient(`the consumer of stream ${this.#stream} is lost: ${this.#fault}`, { code: "WB214" });
    const taken = this.#waiting;
    this.#waiting = [];
    if (taken.length > 0) this.#heardAt = performance.now();
    this.#pull();
    return taken;
  }

  /** Request more once less than half of a batch is to come. Called only when no messages wait, which bounds memory. */
  #pull() {
    if (this.#asked > BATCH / 2 || this.#fault) return;
    if (this.#asked === 0) this.#heardAt = performance.now(); // nothing was to come: silence counts from now on
    this.#asked += BATCH;
    this.#pulls += 1;
    const request = {
      batch: BATCH, max_bytes: Math.max(BATCH_BYTES, 2 * (this.#nats.info?.max_payload ?? 0)), expires: EXPIRES_MS * 1_000_000,
      idle_heartbeat: HEARTBEAT_MS * 1_000_000,
    };
    this.#nats.publish(this.#next, JSON.stringify(request), { reply: `${this.#inbox}.${this.#pulls}` });
  }

  /** @param {import("@nats-io/nats-core").Msg} message */
  #onMessage(message) {
    if (message.reply?.startsWith("$JS.ACK.")) {
      this.#deliver(message, message.reply.split("."));
      return;
    }
    this.#heardAt = performance.now();
    const { headers } = message;
    const code = headers?.code ?? 0;
    const words = `${code} ${headers?.description ?? ""}`;
    if (code === 100) {
      const last = Number(headers?.get("Nats-Last-Consumer") || this.#consumerSeq);
      if (last > this.#consumerSeq) this.#fault = `messages up to ${last} were sent but did not arrive`;
    } else if (code === 404 || code === 408 || (code === 409 && ENDS_OF_PULLS.test(words))) {
      this.#asked = Math.max(0, this.#asked - Number(headers?.get("Nats-Pending-Messages") || this.#asked));
    } else {
      this.#fault = words;
    }
  }

  /** @param {import("@nats-io/nats-core").Msg} message @param {string[]} parts of `$JS.ACK.` (domain and account) stream, consumer, deliveries, stream seq, consumer seq, time, pending */
  #deliver(message, parts) {
    const at = parts.length === 9 ? 5 : 7;
    const [seq, consumerSeq, nanos, pending] = parts.slice(at, at + 4);
    if (Number(consumerSeq) !== this.#consumerSeq + 1) {
      this.#fault ||= `message ${this.#consumerSeq + 1} is missing before ${consumerSeq}`;
      return;
    }
    this.#consumerSeq += 1;
    this.#asked -= 1;
    this.#pending = Number(pending);
    /** @type {Record<string, string>} */
    const headers = {};
    for (const name of message.headers?.keys() ?? []) headers[name] = message.headers?.get(name) ?? "";
    const time = new Date(Number(nanos.slice(0, -6))).toISOString();
    this.#waiting.push({ subject: message.subject, seq: Number(seq), headers, data: message.data, time });
  }

  async close() {
    this.#subscription.unsubscribe();
    await this.#remove();
  }
}
