/** Snapshots in stream INIT: which one can be used, and requests for a new one. */

import { answers, decodeBody, decodeInit, MalformedMessage } from "../contract/decoding.js";
import { INIT, initError, initStart, snapshotRequest } from "../contract/subjects.js";
import { takes } from "./state.js";

/** Ask the stream's bridge for a snapshot. Repeated requests have the effect of one. @param {import("./source_stream.js").SourceStream} source @param {string} token */
export const askForSnapshot = (source, token) => source.transport.publish(snapshotRequest(token, source.name));

/** @param {import("./source_stream.js").Message} message @param {string} stream */
function isAnswerOf(message, stream) {
  try {
    return answers(decodeBody(message.data), stream);
  } catch (error) {
    if (error instanceof MalformedMessage) return false;
    throw error;
  }
}

/**
 * The last message on a subject of INIT that the bridge of the stream wrote, if its sequence is greater than `after`. Usually the
 * subject's last message; other bridges answer on the same subjects, so else ever larger ranges before it are read.
 * @param {import("./source_stream.js").SourceStream} source @param {string} subject @param {number} after
 */
export async function newestAnswer(source, subject, after) {
  const message = await source.transport.message(INIT, { last_by_subj: subject });
  if (message === null || message.seq <= after) return null;
  if (isAnswerOf(message, source.name)) return message;
  for (let end = message.seq, size = 1; end > after + 1; size *= 2) {
    const begin = Math.max(after + 1, end - size);
    let found = null;
    for (let seq = begin; seq < end; ) {
      const one = await source.transport.message(INIT, { seq, next_by_subj: subject });
      if (one === null || one.seq >= end) break;
      if (isAnswerOf(one, source.name)) found = one;
      seq = one.seq + 1;
    }
    if (found !== null) return found;
    end = begin;
  }
  return null;
}

/**
 * The start of the table's newest snapshot, or why the replica cannot use it.
 * @param {import("./replica_state.js").ReplicaState} replica @param {import("./source_stream.js").SourceStream} source
 * @param {string} token @returns {Promise<{seq: number, reason: string}>} `seq` 0: none.
 */
export async function findUsableStart(replica, source, token) {
  const message = await newestAnswer(source, initStart(token), replica.table(token).initSeq);
  const start = message === null ? null : startIn(message);
  if (message === null || start === null) return { seq: 0, reason: "there is none" };
  if ((await newestAnswer(source, initError(token), message.seq)) !== null) return { seq: 0, reason: "the newest snapshot failed" };
  if (!(await source.look()) || message.time < source.view.created) {
    return { seq: 0, reason: "the stream was created after the newest snapshot" };
  }
  let reason = whyUnusable(replica, source, start);
  if (!reason && !(await source.hasKept(start.streamSeq, message.time))) {
    reason = "the stream was cut short and has grown again since the newest snapshot";
  }
  return { seq: reason ? 0 : message.seq, reason };
}

/** Why the events after a snapshot do not lead to the present; `source` must have looked. @param {import("./replica_state.js").ReplicaState} replica @param {import("./source_stream.js").SourceStream} source @param {import("../contract/records.js").SnapshotStart} start */
export function whyUnusable(replica, source, start) {
  const record = replica.table(start.token);
  if (start.streamSeq < record.neededSeq) return "the snapshot is from before the table had to be copied again";
  if (!takes(record, start.version, start.streamSeq)) return "the snapshot is from before the table was published as it is now";
  return source.whyOutOfDate(start.streamSeq);
}

/** @param {import("./source_stream.js").Message} message */
function startIn(message) {
  try {
    const record = decodeInit(message.subject, message.headers, message.data);
    return record?.kind === "start" ? record : null;
  } catch (error) {
    if (error instanceof MalformedMessage) return null;
    throw error;
  }
}
