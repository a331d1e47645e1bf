/** Makes new copies of tables: a copy replaces the old table in one local transaction, when it has reached the other tables. */

import { ApplyConflict, OutOfDate } from "../errors.js";
import { NEEDED_NOTHING } from "../rules/track.js";
import { CannotCopy, NotPublished, SnapshotRefused, SnapshotUnusable } from "./gathered.js";
import { gather } from "./gathering.js";
import { join } from "./joining.js";
import { asDelayed, asRefused, asStale, asTakenUp, asTold } from "./state.js";
import { Limit, sleep } from "./tasks.js";

const GATHERED_AT_ONCE = 4;
const JOINED_AT_ONCE = 4;
const REFUSED_PAUSE_MS = 30_000;
const STREAM_PAUSE_MS = 2_000;
/** Pause before a snapshot that did not fit is read again, doubled each time. */
const [RETRY_MS, RETRY_MS_MAX] = [5_000, 60_000];

/** Makes new copies for one replica. Each copy runs in a task of its own. */
export class Copier {
  /** @type {Set<string>} */
  #tokens = new Set();
  #gathering = new Limit(GATHERED_AT_ONCE);
  #joining = new Limit(JOINED_AT_ONCE);

  /** @param {import("./replica_state.js").ReplicaState} replica @param {import("./source_stream.js").SourceStream} source @param {import("./following.js").Follower} follower */
  constructor(replica, source, follower) {
    this.replica = replica;
    this.source = source;
    this.follower = follower;
  }

  /** Whether a copy of the table is being made. @param {string} token */
  isCopying(token) {
    return this.#tokens.has(token);
  }

  /** Copy until the table is live, or cannot be. At once when another task copies it: that one takes notice of what changed. @param {string} token */
  async copy(token) {
    if (this.#tokens.has(token)) return;
    this.#tokens.add(token);
    try {
      await this.#copy(token);
    } finally {
      this.#tokens.delete(token);
      this.replica.gathered.delete(token);
    }
  }

  /** @param {string} token */
  async #copy(token) {
    const { replica, source, follower } = this;
    const { signal } = follower;
    let retryMs = RETRY_MS;
    if (replica.table(token).state === "refused") await replica.save(asTakenUp(replica.table(token)));
    while (["waiting", "stale"].includes(replica.table(token).state)) {
      let pauseMs = 0;
      try {
        // neither limit holds during pauses: a table that cannot be copied must not delay others
        const gathered = await this.#gathering.hold(() => gather(replica, source, token, signal));
        await follower.waitFor(gathered.start.snapshotLsn, gathered.start.streamSeq);
        await this.#joining.hold(() => join(replica, source, follower, gathered));
      } catch (error) {
        if (error instanceof SnapshotUnusable) {
          replica.events.log(`cannot use a snapshot of ${token}: ${error.message}`);
          await replica.change(token, (record) => {
            const stale = asStale(record, error.message, error.neededSeq);
            const next = { ...stale, initSeq: Math.max(stale.initSeq, error.initSeq) };
            return error.told === undefined ? next : asTold(next, error.told);
          });
        } else if (error instanceof ApplyConflict) {
          [pauseMs, retryMs] = [retryMs, Math.min(2 * retryMs, RETRY_MS_MAX)];
          const keyed = error.isDuplicate ? false : undefined;
          if (keyed === false && replica.table(token).keyed === 1) pauseMs = 0; // without the key it will fit
          await replica.change(token, (record) => asStale(record, error.reason, NEEDED_NOTHING, keyed));
        } else if (error instanceof SnapshotRefused) {
          await replica.change(token, (record) => asDelayed(record, error.message));
          pauseMs = REFUSED_PAUSE_MS;
        } else if (error instanceof CannotCopy) {
          replica.events.log(`a table cannot be mirrored: ${token}: ${error.message}`);
          await replica.change(token, (record) => asRefused(record, error.message));
        } else if (error instanceof OutOfDate) {
          await replica.change(token, (record) => asStale(record, error.message, NEEDED_NOTHING));
          pauseMs = STREAM_PAUSE_MS;
        } else if (!(error instanceof NotPublished)) throw error;
      }
      if (pauseMs > 0) await sleep(pauseMs, signal);
    }
  }
}
