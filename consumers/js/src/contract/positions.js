/** Positions of messages in the order of the stream, and the message ids that contain them. */

import { BRIDGE_TOKEN } from "./subjects.js";

/**
 * Commit LSN, change within the transaction, rank at that change: a gap comes before everything else at its place, a schema
 * event before the row that needs it. LSNs are numbers: exact up to 8 PiB of WAL.
 * @typedef {readonly [lsn: number, seq: number, rank: number]} Position
 */

export const GAP_RANK = -1;
export const SCHEMA_RANK = 0;
export const ROW_RANK = 1;
/** The position before all others. @type {Position} */
export const START = [0, -1, GAP_RANK];

/** @param {Position} a @param {Position} b */
export const comparePositions = (a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2];
/** @param {Position} a @param {Position} b */
export const laterPosition = (a, b) => (comparePositions(a, b) >= 0 ? a : b);
/** An LSN as PostgreSQL writes it: `0/16B3748`. @param {number} lsn */
export const formatLsn = (lsn) =>
  `${Math.floor(lsn / 2 ** 32).toString(16)}/${(lsn % 2 ** 32).toString(16)}`.toUpperCase();

/** @type {Record<string, number>} */
const RANKS = {
  insert: ROW_RANK, update: ROW_RANK, delete: ROW_RANK, truncate: ROW_RANK, schema: SCHEMA_RANK,
  gap: ROW_RANK, // a suspended table's gap takes the place of a row; the bridge's own comes before its position
  published: GAP_RANK,
};
const ID = /^([0-9a-f]{1,16})-([0-9]{1,20})-(.+)-(insert|update|delete|truncate|schema|gap|published)$/;

/** The id of a stored message; undefined when no bridge wrote it. @param {Readonly<Record<string, string>>} headers */
export const idIn = (headers) => headers["Nats-Msg-Id"] ?? headers["Walbridge-Msg-Id"];

/** The position in a message id; null when no bridge made the id. @param {string | undefined} id @returns {Position | null} */
export function positionOfId(id) {
  const found = ID.exec(id ?? "");
  if (found === null) return null;
  const [, lsn, seq, token, operation] = found;
  const isNumbered = operation === "gap" && token === BRIDGE_TOKEN; // two of the bridge's own gaps may have one position
  return [parseInt(lsn, 16), isNumbered ? 0 : Number(seq), isNumbered ? GAP_RANK : RANKS[operation]];
}

/** The position in a stored message's id; null when no bridge wrote it. @param {Readonly<Record<string, string>>} headers */
export const bridgePosition = (headers) => positionOfId(idIn(headers));
