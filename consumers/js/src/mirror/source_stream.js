/** The CDC stream of one bridge: its state, its stored messages, and their events. */

import { Decompressor, DictionaryMissing } from "../contract/compression.js";
import { decodeEvents, MalformedMessage } from "../contract/decoding.js";
import { bridgePosition, idIn } from "../contract/positions.js";
import { DELETED_MAX, explainedBy, messageNeeded, NOT_SEEN, UNKNOWN_MESSAGE, viewOf, whyOutOfDate } from "../contract/stream_view.js";
import { bucketKey, bucketStream, BRIDGES, DICTIONARIES } from "../contract/subjects.js";
import { Fatal, OutOfDate, Transient } from "../errors.js";

/**
 * A stored or delivered message.
 * @typedef {{subject: string, seq: number, headers: Readonly<Record<string, string>>, data: Uint8Array, time: string}} Message
 *
 * An open consumer: `receive` returns all waiting messages in order, none after so many milliseconds. `isAtEnd`: every message
 * was taken that the stream had when it sent the last one.
 * @typedef {{receive(ms: number, signal: AbortSignal): Promise<Message[]>, readonly isAtEnd: boolean, close(): Promise<void>}} Consumer
 *
 * What a replica asks of NATS. Every method throws Transient when there is no answer.
 * @typedef {object} Transport
 * @property {(stream: string, deleted?: boolean) => Promise<any | null>} streamInfo The reply to STREAM.INFO; null when there is no stream.
 * @property {(stream: string, query: {seq?: number, next_by_subj?: string, last_by_subj?: string}) => Promise<Message | null>} message
 * @property {(stream: string, filters: readonly string[], startSeq: number) => Promise<Consumer>} consume
 * @property {(subject: string, body?: Uint8Array) => void} publish
 */

/** The bridge's record, as far as readers need it; `large`: rows of large tables, by token. @typedef {{tables: string[], lastSeq: number, confirmedLsn: number, large: Map<string, number>}} BridgeRecord */

/** One bridge's stream, as its readers see it. */
export class SourceStream {
  /** Its state as of the last look. */
  view = NOT_SEEN;
  #decompressor;

  /**
   * @param {Transport} transport @param {string} name
   * @param {{log: (words: string) => void, zstdUrl?: string}} more
   */
  constructor(transport, name, { log, zstdUrl }) {
    this.transport = transport;
    this.name = name;
    this.log = log;
    this.#decompressor = new Decompressor(async (id) => (await this.kvGet(DICTIONARIES, id))?.data ?? null, zstdUrl);
  }

  /** @param {string} bucket @param {string} key */
  kvGet(bucket, key) {
    return this.transport.message(bucketStream(bucket), { last_by_subj: bucketKey(bucket, key) });
  }

  /** Ask for the stream's state; false when there is no stream. */
  async look() {
    const info = await this.transport.streamInfo(this.name);
    if (info === null) return false;
    let view = viewOf(info);
    let explained = explainedBy(view, this.view);
    if (explained === null && view.deletedCount <= DELETED_MAX) {
      const detailed = await this.transport.streamInfo(this.name, true);
      if (detailed === null) return false;
      explained = viewOf(detailed);
    }
    this.view = explained ?? view;
    return true;
  }

  /** The same; throws Transient when there is no stream. */
  async require() {
    if (!(await this.look())) throw new Transient(`stream ${this.name} is gone; waiting for a bridge`, { code: "WB215" });
  }

  /** Throw OutOfDate unless a reader can continue from the place. @param {import("../contract/stream_view.js").Place} place */
  async checkPlace(place) {
    await this.require();
    const reason = whyOutOfDate(place, this.view, await this.#found(place));
    if (reason) throw new OutOfDate(reason);
  }

  /** Why the events after `seq` cannot be read, as of the last look. @param {number} seq */
  whyOutOfDate(seq) {
    return whyOutOfDate({ seq }, this.view);
  }

  /** Whether the stream has what it had when a snapshot with this `streamSeq` began, at `storedAt`. @param {number} streamSeq @param {string} storedAt */
  async hasKept(streamSeq, storedAt) {
    const place = { seq: streamSeq, storedBy: storedAt };
    return whyOutOfDate(place, this.view, await this.#found(place)) === "";
  }

  /** @param {import("../contract/stream_view.js").Place} place */
  async #found(place) {
    const seq = messageNeeded(place);
    const message = seq ? await this.transport.message(this.name, { seq }) : null;
    return message === null ? null : { id: idIn(message.headers) ?? "", time: message.time };
  }

  /** If sequences are missing, check that other subjects have them, and not that they were deleted. @param {number} seen @param {readonly Message[]} messages @param {string} created */
  async checkJumps(seen, messages, created) {
    if (messages[messages.length - 1].seq - seen !== messages.length) await this.checkPlace({ seq: seen, created });
  }

  /** The bridge's record; null when there is none. @returns {Promise<BridgeRecord | null>} */
  async record() {
    const entry = await this.kvGet(BRIDGES, this.name);
    if (entry === null || entry.data.length === 0) return null;
    try {
      const raw = JSON.parse(new TextDecoder().decode(entry.data));
      const confirmed = Number(raw.confirmed_lsn);
      return {
        tables: raw.tables.map(String), lastSeq: Number(raw.last_seq), large: new Map(Object.entries(raw.large ?? {})),
        // versions before `pending_gap` put a gap's end there, an LSN of the timeline that was left
        confirmedLsn: raw.pending_gap === undefined && Number(raw.rank) === -1 ? Math.min(confirmed, Number(raw.lsn)) : confirmed,
      };
    } catch (cause) {
      throw new Fatal(`key ${this.name} of KV bucket ${BRIDGES} is not a bridge's record`, { code: "WB240", cause });
    }
  }

  // -- stored messages that a bridge wrote

  /** The next message after `after` that a bridge wrote. @param {number} after @param {string} pattern */
  async nextOfABridge(after, pattern) {
    for (;;) {
      const message = await this.transport.message(this.name, { seq: after + 1, next_by_subj: pattern });
      if (message === null) return null;
      const position = bridgePosition(message.headers);
      if (position !== null) return { seq: message.seq, position };
      after = message.seq;
    }
  }

  /** The message at `seq`, or the one before foreign messages there. @param {number} seq */
  async messageOfABridge(seq) {
    for (; seq > 0; seq--) {
      const message = await this.transport.message(this.name, { seq });
      if (message === null || bridgePosition(message.headers) !== null) return message;
    }
    return null;
  }

  /** What the stream has at `seq` for a later comparison; `known`, of an earlier place, if it was deleted. @param {number} seq @param {import("../contract/stream_view.js").LastMessage} known */
  async lastMessageAt(seq, known) {
    const message = await this.messageOfABridge(seq);
    if (message !== null) return { seq: message.seq, id: idIn(message.headers) ?? "" };
    return known.seq >= this.view.firstSeq ? known : UNKNOWN_MESSAGE;
  }

  /** Whether a stored message contains the last event of its transaction. @param {Message} message */
  async endsItsTransaction(message) {
    return decodeEvents(await this.unpacked(message)).some((event) => event.last);
  }

  /** The events of one message; none if no bridge wrote it. Throws Fatal when a bridge's message cannot be read. @param {Message} message */
  async decode(message) {
    const id = idIn(message.headers);
    if (id !== undefined) {
      let said;
      try {
        const events = decodeEvents(Decompressor.isPacked(message.headers) ? await this.unpacked(message) : message.data);
        const last = events.at(-1);
        if (last !== undefined && id.startsWith(`${last.lsn.toString(16)}-${last.seq}-`)) return events;
        said = "its id is not that of its last event";
      } catch (error) {
        if (!(error instanceof MalformedMessage)) throw error;
        said = error.message;
      }
      if (bridgePosition(message.headers) !== null) { // else the id is somebody else's, whatever the body is
        throw new Fatal(`message ${message.seq} of stream ${this.name} cannot be read: ${said}`, {
          code: "WB515", fix: "install a version of this package that knows the bridge's",
        });
      }
    }
    this.log(`skipping a message that is no bridge's: ${message.seq} of stream ${this.name} on ${message.subject}`);
    return [];
  }

  /** A message's body as it was before compression. @param {Message} message */
  async unpacked(message) {
    try {
      return await this.#decompressor.unpack(message.headers, message.data);
    } catch (error) {
      if (error instanceof DictionaryMissing) throw new Transient(error.message, { code: "WB216" });
      throw error;
    }
  }
}
