/** The names that the bridge and its readers agree on in NATS: streams, subjects, buckets, keys. No other module spells one. */

export const CDC = "CDC";
export const INIT = "INIT";
export const BRIDGES = "bridges";
export const DICTIONARIES = "dictionaries";
/** Stands for a table's token where no table is meant; tables' tokens never begin with `_`. */
export const BRIDGE_TOKEN = "_bridge";

export const CDC_ALL = "cdc.>";
/** What concerns several tables: gaps and changes of the publication. */
export const CDC_NOTICES = `cdc.${BRIDGE_TOKEN}.>`;

/** Prefix of each subject of a stream on the wire; INIT and the stream CDC have none, others remove it before they store. @param {string} stream */
export const publishPrefix = (stream) => (stream === CDC || stream === INIT ? "" : `_${stream}.`);
/** @param {string} token */
export const cdcOfTable = (token) => `cdc.${token}.>`;
/** @param {string} token */
export const initStart = (token) => `init.start.${token}`;
/** @param {string} token */
export const initError = (token) => `init.error.${token}`;
/** Patterns of a table's snapshots: start, chunks, meta and error. @param {string} token */
export const snapshotOfTable = (token) => [initStart(token), `init.snap.${token}.>`, `init.meta.${token}`, initError(token)];
/** Subjects of a table's snapshots that only the array format has. @param {string} token */
export const arraysOfTable = (token) => [`snapshot.init.${token}`, `snapshot.data.${token}`];
/** After a table's token in requests and in INIT: the table in rounds. */
export const RANGES = "+ranges";
/** The same: rows that an asker names by their keys. @param {string} asker Letters, digits, `_` and `-`. */
export const keysSuffix = (asker) => `+${asker}`;
/** Split the token of a subject in INIT into the table's token and the suffix. @param {string} token @returns {[token: string, suffix: string]} */
export function splitSuffix(token) {
  const at = token.search(/[+~]/);
  return at < 0 ? [token, ""] : [token.slice(0, at), token.slice(at)];
}
/** A request for a snapshot to the bridge of a stream. @param {string} token @param {string} stream */
export const snapshotRequest = (token, stream) => `snapshot.request.${token}@${stream}`;
/** @param {string} bucket */
export const bucketStream = (bucket) => `KV_${bucket}`;
/** @param {string} bucket @param {string} key */
export const bucketKey = (bucket, key) => `$KV.${bucket}.${key}`;

/**
 * Match by NATS's rule: `*` stands for one token, `>` for one or more at the end.
 * @param {string} pattern @param {string} subject
 */
export function matches(pattern, subject) {
  const [wanted, found] = [pattern.split("."), subject.split(".")];
  for (const [i, token] of wanted.entries()) {
    if (token === ">") return found.length > i;
    if (i >= found.length || (token !== "*" && token !== found[i])) return false;
  }
  return wanted.length === found.length;
}

/** Whether each subject matches one of the patterns. @param {readonly string[]} patterns @param {readonly string[]} subjects */
export const covers = (patterns, subjects) => subjects.every((one) => patterns.some((pattern) => matches(pattern, one)));

const INIT_KINDS = /** @type {const} */ ({ start: "start", meta: "meta", error: "error", schema: "init schema" });
const ARRAY_KINDS = /** @type {const} */ ({ init: "array start", data: "array chunk" });

/**
 * Read a subject of stream INIT; null for others.
 * @param {string} subject
 * @returns {{kind: string, token: string, snapshotId: string} | null}
 */
export function parseInit(subject) {
  const parts = subject.split(".");
  const [first, kind, token] = parts;
  if (parts.length === 5 && first === "init" && kind === "snap") return { kind: "chunk", token, snapshotId: parts[3] };
  if (parts.length !== 3 || !token) return null;
  if (first === "init" && Object.hasOwn(INIT_KINDS, kind)) {
    return { kind: INIT_KINDS[/** @type {"start"} */ (kind)], token, snapshotId: "" };
  }
  if (first === "snapshot" && Object.hasOwn(ARRAY_KINDS, kind)) {
    return { kind: ARRAY_KINDS[/** @type {"init"} */ (kind)], token, snapshotId: "" };
  }
  return null;
}
