/** JetStream in this process's memory, as far as a replica asks it: what a history says happens. */

import { matches } from "../src/contract/subjects.js";
import { Transient } from "../src/errors.js";
import { clock } from "../src/mirror/clock.js";
import { Ended } from "../src/mirror/tasks.js";
import { News } from "../src/mirror/tasks.js";

const SUBJECTS = { CDC: ["cdc.>"], INIT: ["init.>", "snapshot.init.>", "snapshot.data.>"] };

/** A server: streams and buckets. Every change is a millisecond later than the one before. */
export class MemoryNats {
  /** @type {Map<string, {created: string, messages: Map<number, any>, firstSeq: number, lastSeq: number}>} */
  streams = new Map();
  /** Subjects on which somebody published. @type {string[]} */
  published = [];
  /** The id in the last request that named rows by their keys. */
  asker = "";
  news = new News();
  #time = Date.UTC(2026, 0, 1);
  /** Grows when connections are lost. */
  era = 0;

  #now() {
    this.#time += 1;
    return new Date(this.#time).toISOString();
  }

  createStream(name, firstSeq) {
    const isNew = !this.streams.has(name);
    this.streams.set(name, { created: this.#now(), messages: new Map(), firstSeq, lastSeq: firstSeq - 1 });
    if (!isNew) this.lose();
  }

  /** Connections are lost, and with them consumers. */
  lose() {
    this.era += 1;
    this.news.ring();
  }

  store(name, subject, headers, data) {
    const stream = this.streams.get(name);
    stream.lastSeq += 1;
    const seq = stream.lastSeq;
    stream.messages.set(seq, { subject, seq, headers, data, time: this.#now() });
    this.news.ring();
    return seq;
  }

  put(bucket, key, data) {
    if (!this.streams.has(`KV_${bucket}`)) this.createStream(`KV_${bucket}`, 1);
    this.store(`KV_${bucket}`, `$KV.${bucket}.${key}`, {}, data);
  }

  remove(name, seqs) {
    const stream = this.streams.get(name);
    for (const seq of seqs) stream.messages.delete(seq);
    this.#advance(stream);
  }

  #advance(stream) {
    while (stream.firstSeq <= stream.lastSeq && !stream.messages.has(stream.firstSeq)) stream.firstSeq += 1;
  }

  purge(name, firstSeq) {
    const stream = this.streams.get(name);
    for (const seq of [...stream.messages.keys()]) if (seq < firstSeq) stream.messages.delete(seq);
    stream.firstSeq = Math.max(stream.firstSeq, firstSeq);
    stream.lastSeq = Math.max(stream.lastSeq, firstSeq - 1);
    this.#advance(stream);
  }

  cut(name, lastSeq) {
    const stream = this.streams.get(name);
    for (const seq of [...stream.messages.keys()]) if (seq > lastSeq) stream.messages.delete(seq);
    stream.lastSeq = lastSeq;
    this.lose();
  }
}

/** One connection to it. @implements {Required<import("../src/mirror/source_stream.js").Transport>} */
export class MemoryTransport {
  /** @param {MemoryNats} server */
  constructor(server) {
    this.server = server;
    this.era = server.era;
  }

  #stream(name) {
    if (this.server.era !== this.era) throw new Transient("the connection was lost");
    return this.server.streams.get(name);
  }

  async streamInfo(name, deleted = false) {
    const stream = this.#stream(name);
    if (stream === undefined) return null;
    const gone = [];
    for (let seq = stream.firstSeq; seq <= stream.lastSeq; seq++) if (!stream.messages.has(seq)) gone.push(seq);
    const state = { first_seq: stream.firstSeq, last_seq: stream.lastSeq, num_deleted: gone.length };
    return { created: stream.created, config: { subjects: SUBJECTS[name] ?? [] }, state: deleted ? { ...state, deleted: gone } : state };
  }

  async message(name, { seq, next_by_subj: next, last_by_subj: last }) {
    const stream = this.#stream(name);
    if (stream === undefined) return null;
    if (last !== undefined) {
      for (let at = stream.lastSeq; at >= stream.firstSeq; at--) if (stream.messages.get(at)?.subject === last) return stream.messages.get(at);
      return null;
    }
    if (next === undefined) return stream.messages.get(seq) ?? null;
    return this.#next(stream, seq, [next]);
  }

  #next(stream, seq, filters) {
    for (let at = Math.max(seq, stream.firstSeq); at <= stream.lastSeq; at++) {
      const message = stream.messages.get(at);
      if (message !== undefined && filters.some((pattern) => matches(pattern, message.subject))) return message;
    }
    return null;
  }

  async consume(name, filters, startSeq) {
    if (this.#stream(name) === undefined) throw new Transient(`no stream ${name}`);
    let at = startSeq;
    const take = () => {
      const found = [];
      const stream = this.#stream(name);
      for (let one = this.#next(stream, at, filters); one !== null; one = this.#next(stream, at, filters)) {
        found.push(one);
        at = one.seq + 1;
      }
      return found;
    };
    const isAtEnd = () => this.#next(this.#stream(name), at, filters) === null;
    return {
      receive: async (ms, signal) => {
        if (signal.aborted) throw new Ended("ended");
        const until = clock.now() + ms;
        let found = take();
        while (found.length === 0 && clock.now() < until) {
          await this.server.news.wait(signal, until - clock.now());
          found = take();
        }
        return found;
      },
      get isAtEnd() {
        return isAtEnd();
      },
      close: async () => {},
    };
  }

  publish(subject) {
    this.server.published.push(subject);
    const asker = /\+([\w-]+)@/.exec(subject)?.[1];
    if (asker !== undefined && asker !== "ranges") this.server.asker = asker;
  }
}
