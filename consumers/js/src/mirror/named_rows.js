/** Asks the bridge for rows by their keys, as of one place in the stream (`snapshot.request.{table}+{id}`). */

import { encode } from "@msgpack/msgpack";

import { decodeInit, MalformedMessage } from "../contract/decoding.js";
import { INIT, keysSuffix, snapshotOfTable, snapshotRequest } from "../contract/subjects.js";
import { clock } from "./clock.js";
import { SnapshotRefused } from "./gathered.js";

export const ASK_AGAIN_MS = 30_000;
export const LOOK_MS = 2_000;
export const KEYS_MAX = 1_000;
/** Of a request that names rows: below any limit of a message. */
export const BODY_BYTES_MAX = 256 * 1024;
/** Errors after which the same rows are asked for once more. */
const PASSING = ["postgres_unavailable", "no_watermark", "table_changed", "start_lost", "nats_error"];
/** Errors of one row among those that were asked for. */
const UNREADABLE = ["row_too_large", "unreadable_value"];

/** The body of a request; each key has its values in the order of the key's columns. @param {unknown[][]} keys */
export const requestBody = (keys) => encode({ keys }, { useBigInt64: true });

/**
 * The answer to a request, asked for again until there is one; null if one of the rows cannot be sent. `check` throws when the start
 * of an answer does not fit. An answer from before `sinceSeq` is not taken: `tooOld` is awaited, and the next one is. `look` is called
 * at least every two seconds, and throws to give up. Throws SnapshotRefused.
 * @param {import("./source_stream.js").SourceStream} source @param {string} token @param {Uint8Array} body
 * @param {{check: (start: import("../contract/records.js").RangesStart) => void, sinceSeq: number, tooOld: () => Promise<void>, look: () => void, log: (words: string) => void, signal: AbortSignal}} how
 * @returns {Promise<import("../contract/records.js").RangesChunk[] | null>}
 */
export async function askByKey(source, token, body, { check, sinceSeq, tooOld, look, log, signal }) {
  const part = token + keysSuffix(`replica-${crypto.randomUUID().slice(0, 13)}`);
  const info = await source.transport.streamInfo(INIT);
  const consumer = await source.transport.consume(INIT, snapshotOfTable(part), (info?.state.last_seq ?? 0) + 1);
  const ask = () => source.transport.publish(snapshotRequest(part, source.name), body);
  try {
    ask();
    let heardAt = clock.now();
    /** @type {import("../contract/records.js").RangesStart | null} */
    let answer = null;
    /** @type {import("../contract/records.js").RangesChunk[]} */
    let chunks = [];
    for (;;) {
      const messages = await consumer.receive(LOOK_MS, signal);
      look();
      if (messages.length > 0) heardAt = clock.now();
      else if (clock.now() - heardAt >= ASK_AGAIN_MS) {
        heardAt = clock.now();
        ask();
      }
      for (const message of messages) {
        const record = await decodeAnswer(source, message, log);
        if (record === null || ("stream" in record && record.stream !== source.name)) continue;
        if (record.kind === "ranges start") {
          answer = record;
          chunks = [];
          check(record);
        } else if (record.kind === "error") {
          if (record.snapshotId && answer !== null && record.snapshotId !== answer.snapshotId) continue; // an attempt that is over
          if (UNREADABLE.includes(record.errorType)) return null;
          if (!PASSING.includes(record.errorType)) throw new SnapshotRefused(`${record.errorType}: ${record.errorMessage}`);
          log(`rows of ${token} that were asked for by key were not sent; asking again: ${record.errorType}: ${record.errorMessage}`);
        } else if (answer === null || record.snapshotId !== answer.snapshotId) {
          continue; // somebody else's
        } else if (record.kind === "ranges chunk") {
          chunks.push(record);
        } else if (record.kind === "meta") {
          if (record.batchCount !== chunks.length) answer = null;
          else if (record.streamSeq >= sinceSeq) return chunks;
          else { // events that are applied already would be undone
            await tooOld();
            answer = null;
          }
        }
      }
    }
  } finally {
    await consumer.close();
  }
}

/**
 * Decode a message of INIT; null for one that cannot be read: foreign; had a bridge written it, a chunk will be missing.
 * @param {import("./source_stream.js").SourceStream} source @param {import("./source_stream.js").Message} message
 * @param {(words: string) => void} log
 */
export async function decodeAnswer(source, message, log) {
  try {
    return decodeInit(message.subject, message.headers, await source.unpacked(message));
  } catch (error) {
    if (!(error instanceof MalformedMessage)) throw error;
    log(`skipping message ${message.seq} of ${INIT} on ${message.subject}: ${error.message}`);
    return null;
  }
}
