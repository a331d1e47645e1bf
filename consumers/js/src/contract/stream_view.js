/** What JetStream says that a stream holds, and whether a reader of it can continue from a place. */

/** Deleted messages of which the sequences are asked for. */
export const DELETED_MAX = 1_000_000;

/** The newest message of a bridge at a place; seq 0 when unknown. @typedef {{seq: number, id: string}} LastMessage */
/** @type {LastMessage} */
export const UNKNOWN_MESSAGE = { seq: 0, id: "" };

/**
 * How far a reader has read: everything up to `seq` of the stream created at `created` (empty: any). `storedBy`: for a
 * snapshot, when its start was stored; what the stream held then was stored before.
 * @typedef {{seq: number, created?: string, lastMessage?: LastMessage, storedBy?: string}} Place
 */

/** A stream's extent as of one look; `deleted` is null when nobody has asked which. @typedef {{created: string, firstSeq: number, lastSeq: number, deletedCount: number, deleted: readonly number[] | null}} StreamView */

/** @type {StreamView} */
export const NOT_SEEN = { created: "", firstSeq: 0, lastSeq: 0, deletedCount: 0, deleted: [] };

/** Read a reply to STREAM.INFO. @param {any} info @returns {StreamView} */
export function viewOf(info) {
  const { first_seq, last_seq, num_deleted, deleted } = info.state;
  const count = num_deleted ?? 0;
  const known = deleted?.length ? [...deleted].sort((/** @type {number} */ a, /** @type {number} */ b) => a - b) : count ? null : [];
  return { created: info.created, firstSeq: first_seq, lastSeq: last_seq, deletedCount: count, deleted: known };
}

/**
 * A view with the deleted sequences of an earlier one; null when messages were deleted since.
 * @param {StreamView} view @param {StreamView} earlier @returns {StreamView | null}
 */
export function explainedBy(view, earlier) {
  if (view.deleted !== null) return view;
  if (earlier.deleted === null || earlier.created !== view.created) return null;
  const kept = earlier.deleted.filter((seq) => seq > view.firstSeq);
  return kept.length === view.deletedCount ? { ...view, deleted: kept } : null;
}

/** The sequence of the message that must be compared; 0 for none. @param {Place} place */
export const messageNeeded = (place) => place.lastMessage?.seq || (place.storedBy ? place.seq : 0);

/**
 * Why a reader cannot continue from its place; empty when it can. `found` is the message at `messageNeeded`.
 * @param {Place} place @param {StreamView} view @param {{id: string, time: string} | null} [found]
 */
export function whyOutOfDate(place, view, found = null) {
  if (place.created && view.created !== place.created) return "the stream was created again";
  if (view.lastSeq < place.seq) return "the stream was cut short";
  if (view.firstSeq > place.seq + 1) return "the stream no longer holds what comes next";
  const hasDeleted = view.deleted === null ? view.deletedCount > 0 : (view.deleted.at(-1) ?? 0) > place.seq;
  if (hasDeleted) return "messages that come next were deleted from the stream";
  if (place.lastMessage?.seq) {
    if (found === null) return "the stream no longer holds the message that was read last";
    if (found.id !== place.lastMessage.id) {
      return "the stream was cut short and has grown again: it holds another message where reading ended";
    }
  }
  // without the Z: JetStream omits trailing zeros of the fraction
  if (place.storedBy && found !== null && found.time.replace("Z", "") > place.storedBy.replace("Z", "")) {
    return "the stream was cut short and has grown again since the snapshot began";
  }
  return "";
}
