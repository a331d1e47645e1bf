/** A live replica: sessions one after another until it is closed, and queries on its store. */

import { tableName } from "./contract/table_token.js";
import { Fatal, ReplicaError } from "./errors.js";
import { runSession } from "./mirror/session.js";
import { Ended, Lock, News, sleep } from "./mirror/tasks.js";
import { NatsTransport } from "./source/nats_transport.js";

const [RETRY_MS, RETRY_MS_MAX] = [200, 5_000];
const ROUNDS_FROM_ROWS = 1_000_000;

/**
 * @typedef {object} ReplicaOptions
 * @property {string | string[]} servers URLs of NATS: `wss://` or `ws://` in a browser; in Node also `nats://` and `tls://`.
 * @property {import("./stores/store.js").Store} store Where the rows are kept.
 * @property {string[]} [tables] Names of tables, such as `users` or `sales.orders`; all that the bridge publishes without it.
 * @property {string} [stream] The bridge's stream; `CDC` by default.
 * @property {string[]} [again] Tables to copy again once.
 * @property {Record<string, unknown>} [nats] More options of the connection: `user` and `pass`, `token`, `authenticator`, `tls`.
 * @property {string} [domain] JetStream's domain, for a user of an account that imports the streams.
 * @property {boolean} [makesConsumers] false for a user who may make no consumers: stored messages are read by their sequences.
 * @property {number} [roundsFromRows] Tables with so many rows are copied in rounds, each of which a restart keeps; 1,000,000 by
 * default, 0 for none.
 * @property {string} [zstdUrl] Where a page keeps the file `zstd.wasm` of the zstd package, for compressed streams.
 * @property {(words: string) => void} [log] Takes sentences about what happens, for people.
 */

/**
 * A table of the replica. `rowsCopied` while a copy of it is made, `rowsExpected` if that is in rounds and PostgreSQL has statistics.
 * @typedef {{table: string, token: string, state: import("./mirror/state.js").State, reason: string, rowsCopied: number | null, rowsExpected: number | null}} TableStatus
 *
 * `connecting`: NATS is not reached. `waiting`: for a bridge. `copying`: some tables are not current yet. `live`: all are followed.
 * `paused`, `failed`, `closed`: nothing happens. `lagMs`: 0 when everything in the stream is applied; else how long ago that was so,
 * or how old the newest change is that was applied. `position`: the stream's sequence up to which the tables are complete.
 * @typedef {object} Status
 * @property {"connecting" | "waiting" | "copying" | "live" | "paused" | "failed" | "closed"} state
 * @property {string} reason
 * @property {number} lagMs
 * @property {number} position
 * @property {TableStatus[]} tables
 */

/** Tables that a local transaction changed; `commitMs`: when the source committed its newest change, 0 for a new copy. @typedef {{tables: string[], commitMs: number}} Commit */

/** @typedef {(servers: string[], options: Record<string, unknown>) => Promise<import("@nats-io/nats-core").NatsConnection>} Connect */

/** A query that runs again. @typedef {{sql: string, params: readonly unknown[], callback: (rows: Record<string, unknown>[]) => void, onError: (error: unknown) => void, tables: Set<string> | null, isDue: boolean, isRunning: boolean, isStopped: boolean}} Live */

/** An error's words, with its code. @param {unknown} error */
function wordsOf(error) {
  const words = error instanceof Error ? error.message : String(error);
  return error instanceof ReplicaError && error.code ? `${error.code}: ${words}` : words;
}

/** A live copy of tables. Made by `openReplica`. */
export class Replica {
  #options;
  #connect;
  #store;
  #lock = new Lock();
  #stop = new AbortController();
  #session = new AbortController();
  #retry = new News();
  #statusNews = new News();
  /** @type {import("./mirror/replica_state.js").ReplicaState | null} */
  #replica = null;
  /** @type {Status["state"]} */
  #phase = "connecting";
  #reason = "";
  #isPaused = false;
  #isCaughtUp = false;
  #currentAt = Date.now();
  /** @type {Set<(status: Status) => void>} */
  #onStatus = new Set();
  /** @type {Set<(commit: Commit) => void>} */
  #onCommit = new Set();
  /** @type {Set<Live>} */
  #lives = new Set();
  /** @type {unknown} */
  #error = null;
  #isToldSoon = false;
  #running;

  /** Use `openReplica`. @param {ReplicaOptions} options @param {Connect} connect */
  constructor(options, connect) {
    this.#options = options;
    this.#connect = connect;
    this.#store = options.store;
    this.#running = this.#run();
    globalThis.addEventListener?.("online", this.#online);
  }

  #online = () => this.#retry.ring();

  // -- status

  /** @returns {Status} */
  get status() {
    const records = [...(this.#replica?.tables.values() ?? [])];
    const gathered = this.#replica?.gathered;
    const tables = records.map(({ token, state, reason }) =>
      ({ table: tableName(token), token, state, reason, rowsCopied: gathered?.get(token)?.rows ?? null,
        rowsExpected: gathered?.get(token)?.expected ?? null }));
    /** @type {Status["state"]} */
    let state = this.#phase;
    if (state === "live" && (tables.length === 0 || tables.some((one) => one.state === "waiting" || one.state === "stale"))) state = "copying";
    const isCurrent = this.#phase === "live" && this.#isCaughtUp;
    return {
      state, reason: this.#reason, tables, position: this.#replica?.checkpoint?.cursor.streamSeq ?? 0,
      lagMs: isCurrent ? 0 : Math.max(0, Date.now() - this.#currentAt),
    };
  }

  /** The error of a replica that has failed. */
  get error() {
    return this.#error;
  }

  /** Call back with the status now, and when it has changed; returns what ends that. @param {(status: Status) => void} callback @returns {() => void} */
  onStatus(callback) {
    this.#onStatus.add(callback);
    callback(this.status);
    return () => this.#onStatus.delete(callback);
  }

  /** Call back after each local transaction; returns what ends that. @param {(commit: Commit) => void} callback @returns {() => void} */
  onCommit(callback) {
    this.#onCommit.add(callback);
    return () => this.#onCommit.delete(callback);
  }

  /** Wait until all tables are live and everything in the stream is applied. Throws the error of a replica that fails. */
  async ready() {
    const isReady = () => this.#phase === "failed" || this.#phase === "closed" || (this.status.state === "live" && this.#isCaughtUp);
    await this.#statusNews.until(new AbortController().signal, isReady);
    if (this.#phase === "failed") throw this.#error;
    if (this.#phase === "closed") throw new Ended("the replica is closed");
  }

  #tell() {
    this.#statusNews.ring();
    if (this.#isToldSoon || this.#onStatus.size === 0) return;
    this.#isToldSoon = true;
    setTimeout(() => {
      this.#isToldSoon = false;
      const { status } = this;
      for (const callback of this.#onStatus) callback(status);
    }, 20);
  }

  /** @param {Status["state"]} phase @param {string} [reason] */
  #enter(phase, reason = "") {
    this.#phase = phase;
    this.#reason = reason;
    this.#tell();
  }

  // -- queries

  /** The rows of a query; it never sees half a transaction. @param {string} sql @param {readonly unknown[]} [params] */
  query(sql, params = []) {
    return this.#lock.hold(() => this.#store.select(sql, params));
  }

  /**
   * Call back with the rows of a query now, and after every transaction that changed a table which it reads. Before the first copy
   * of such a table there is nothing to call back with. Returns what ends it.
   * @param {string} sql @param {readonly unknown[]} params @param {(rows: Record<string, unknown>[]) => void} callback
   * @param {{onError?: (error: unknown) => void}} [more] @returns {() => void}
   */
  live(sql, params, callback, { onError } = {}) {
    /** @type {Live} */
    const live = {
      sql, params, callback, tables: null, isDue: true, isRunning: false, isStopped: false,
      onError: onError ?? ((error) => this.#log(`a live query failed: ${error}: ${sql}`)),
    };
    this.#lives.add(live);
    void this.#refresh(live);
    return () => {
      live.isStopped = true;
      this.#lives.delete(live);
    };
  }

  /** @param {Live} live */
  async #refresh(live) {
    if (live.isRunning) return;
    live.isRunning = true;
    while (live.isDue && !live.isStopped) {
      live.isDue = false;
      try {
        const rows = await this.#lock.hold(async () => {
          live.tables = await this.#store.tablesOf(live.sql, live.params);
          return this.#store.select(live.sql, live.params);
        });
        if (!live.isStopped) live.callback(rows);
      } catch (error) {
        live.tables = null;
        const isEarly = this.status.tables.length === 0 || this.status.tables.some(({ state }) => state === "waiting");
        if (!isEarly && !live.isStopped) live.onError(error);
      }
    }
    live.isRunning = false;
  }

  // -- life

  /** Leave NATS until `resume`; queries go on. */
  pause() {
    this.#isPaused = true;
    this.#session.abort();
    this.#retry.ring();
  }

  /** Connect again. */
  resume() {
    this.#isPaused = false;
    this.#retry.ring();
  }

  /** End the replica and close its store. */
  async close() {
    globalThis.removeEventListener?.("online", this.#online);
    for (const live of this.#lives) live.isStopped = true;
    this.#lives.clear();
    this.#stop.abort();
    this.#session.abort();
    await this.#running;
    if (this.#phase === "closed") return;
    this.#enter("closed");
    await this.#lock.hold(() => this.#store.close());
  }

  async #run() {
    const signal = this.#stop.signal;
    let retryMs = RETRY_MS;
    while (!signal.aborted) {
      const beganAt = performance.now();
      this.#session = new AbortController();
      try {
        if (this.#isPaused) {
          this.#enter("paused");
          await this.#retry.until(signal, () => !this.#isPaused);
          this.#enter("connecting");
        }
        await this.#connected(this.#session.signal);
      } catch (error) {
        if (signal.aborted) return;
        if (this.#isPaused) continue;
        if (error instanceof Fatal) {
          this.#error = error;
          this.#log(wordsOf(error));
          return this.#enter("failed", wordsOf(error));
        }
        const words = wordsOf(error);
        this.#log(`trying again: ${words}`);
        this.#enter("connecting", words);
        if (performance.now() - beganAt > RETRY_MS_MAX) retryMs = RETRY_MS;
        try {
          await this.#retry.wait(signal, retryMs);
        } catch {
          return;
        }
        retryMs = Math.min(2 * retryMs, RETRY_MS_MAX);
      } finally {
        this.#isCaughtUp = false;
      }
    }
  }

  /** One connection and the session on it. @param {AbortSignal} signal */
  async #connected(signal) {
    const { servers, nats: more, stream = "CDC", tables = [], again = [], domain, makesConsumers, zstdUrl, roundsFromRows = ROUNDS_FROM_ROWS } = this.#options;
    // a session begins at the stored place: a connection that mends itself would have nothing to mend
    const nats = await this.#connect([servers].flat(), { timeout: 5_000, reconnect: false, pingInterval: 10_000, ...more });
    const ended = new AbortController();
    const end = () => ended.abort();
    signal.addEventListener("abort", end, { once: true });
    /** @type {unknown} */
    let gone = null;
    void nats.closed().then((error) => {
      gone = error ?? new Error("the connection to NATS was closed");
      end();
    });
    try {
      if (signal.aborted) end();
      await runSession(
        this.#store, new NatsTransport(nats, { domain, makesConsumers }), { stream, tables, again, lock: this.#lock, zstdUrl, roundsFromRows },
        this.#events, ended.signal,
      );
    } catch (error) {
      throw gone ?? error;
    } finally {
      signal.removeEventListener("abort", end);
      await nats.close();
    }
  }

  /** @param {string} words */
  #log(words) {
    this.#options.log?.(words);
  }

  /** @type {import("./mirror/session.js").Events} */
  #events = {
    log: (words) => this.#log(words),
    began: (replica) => {
      this.#replica = replica;
      this.#enter("live");
      for (const live of this.#lives) this.#due(live);
    },
    waiting: (reason) => {
      if (this.#phase !== "waiting") this.#log(reason);
      this.#phase = "waiting";
      this.#reason = reason;
      this.#tell();
    },
    tableChanged: () => {
      if (this.#phase === "waiting") this.#enter("live");
      this.#tell();
    },
    copyAgain: (token, reason) => this.#log(`table ${tableName(token)} must be copied again and keeps its rows until then: ${reason}`),
    received: (message) => {
      if (this.#phase === "waiting") this.#phase = "live";
      this.#isCaughtUp = false;
      this.#currentAt = Date.parse(message.time);
      this.#tell();
    },
    caughtUp: () => {
      if (this.#phase === "waiting") this.#phase = "live";
      const isNew = !this.#isCaughtUp;
      this.#isCaughtUp = true;
      this.#currentAt = Date.now();
      if (isNew) this.#tell();
    },
    committed: ({ tokens, commitUs }) => {
      const names = tokens.map((token) => {
        const record = this.#replica?.tables.get(token);
        if (record === undefined) return tableName(token);
        return record.localSchema && record.localSchema !== "public" ? `${record.localSchema}.${record.localName}` : record.localName;
      });
      for (const live of this.#lives) {
        if (live.tables === null || names.some((name) => live.tables?.has(name))) this.#due(live);
      }
      const commit = { tables: tokens.map(tableName), commitMs: commitUs / 1000 };
      for (const callback of this.#onCommit) callback(commit);
      this.#tell();
    },
  };

  /** @param {Live} live */
  #due(live) {
    live.isDue = true;
    void this.#refresh(live);
  }
}

/**
 * Open a replica over a function that connects to NATS. Throws Fatal when another replica writes to the store.
 * @param {ReplicaOptions} options @param {Connect} connect
 */
export async function openWith(options, connect) {
  await options.store.claim();
  return new Replica(options, connect);
}
