/**
 * One tab writes, the others follow. Each tab starts a worker that waits for a lock of the browser; the worker that has it opens the
 * store and serves all tabs, its own too. When its tab is closed, the browser gives the lock to the next one.
 */

const ASK_AGAIN_MS = 1_000;

/** @typedef {{kind: "hello"} | {kind: "query" | "live", id: string, sql: string, params: readonly unknown[]} | {kind: "end", id: string} | {kind: "pause" | "resume"}} Ask */
/** @typedef {{kind: "here", server: string} | {kind: "status", status: import("./replica.js").Status} | {kind: "rows", id: string, rows: Record<string, unknown>[]} | {kind: "error", id: string, message: string}} Answer */

/**
 * In a worker: wait for the lock of this name, then open the replica and serve it until the worker ends.
 * @param {string} name @param {() => Promise<import("./replica.js").Replica>} open
 * @returns {Promise<void>}
 */
export async function serveTabs(name, open) {
  await navigator.locks.request(`walbridge:${name}`, async () => {
    const channel = new BroadcastChannel(`walbridge:${name}`);
    const server = crypto.randomUUID();
    const tell = (/** @type {Answer} */ answer) => channel.postMessage(answer);
    /** @type {import("./replica.js").Replica} */
    let replica;
    try {
      replica = await open();
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      tell({ kind: "status", status: { state: "failed", reason, lagMs: 0, position: 0, tables: [] } });
      throw error;
    }
    /** @type {Map<string, () => void>} */
    const lives = new Map();
    channel.onmessage = ({ data }) => {
      const ask = /** @type {Ask} */ (data);
      if (ask.kind === "hello") {
        tell({ kind: "here", server });
        tell({ kind: "status", status: replica.status });
      } else if (ask.kind === "pause") replica.pause();
      else if (ask.kind === "resume") replica.resume();
      else if (ask.kind === "query") {
        const { id } = ask;
        replica.query(ask.sql, ask.params).then(
          (rows) => tell({ kind: "rows", id, rows }),
          (error) => tell({ kind: "error", id, message: String(error?.message ?? error) }),
        );
      } else if (ask.kind === "live" && !lives.has(ask.id)) {
        const { id } = ask;
        const onError = (/** @type {any} */ error) => tell({ kind: "error", id, message: String(error?.message ?? error) });
        lives.set(id, replica.live(ask.sql, ask.params, (rows) => tell({ kind: "rows", id, rows }), { onError }));
      } else if (ask.kind === "end") {
        lives.get(ask.id)?.();
        lives.delete(ask.id);
      }
    };
    replica.onStatus((status) => tell({ kind: "status", status }));
    tell({ kind: "here", server });
    await new Promise(() => {}); // the lock ends with the worker
  });
}

/**
 * In a page: use the replica that some tab's worker serves under this name.
 * @param {string} name
 */
export function joinTabs(name) {
  const channel = new BroadcastChannel(`walbridge:${name}`);
  const ask = (/** @type {Ask} */ one) => channel.postMessage(one);
  /** @type {Map<string, {ask: Ask, rows: (rows: Record<string, unknown>[]) => void, error: (error: Error) => void}>} */
  const open = new Map();
  /** @type {Set<(status: import("./replica.js").Status) => void>} */
  const onStatus = new Set();
  /** @type {import("./replica.js").Status} */
  let status = { state: "connecting", reason: "no tab serves the replica yet", lagMs: 0, position: 0, tables: [] };
  let server = "";
  channel.onmessage = ({ data }) => {
    const answer = /** @type {Answer} */ (data);
    if (answer.kind === "here") {
      if (answer.server === server) return;
      server = answer.server; // another one serves now: it knows nothing of what was asked
      for (const one of open.values()) ask(one.ask);
    } else if (answer.kind === "status") {
      status = answer.status;
      for (const callback of onStatus) callback(status);
    } else if (answer.kind === "rows") open.get(answer.id)?.rows(answer.rows);
    else open.get(answer.id)?.error(new Error(answer.message));
  };
  const hello = setInterval(() => (server === "" ? ask({ kind: "hello" }) : undefined), ASK_AGAIN_MS);
  ask({ kind: "hello" });
  return {
    /** The status as of the last news. */
    get status() {
      return status;
    },
    /** @param {(status: import("./replica.js").Status) => void} callback @returns {() => void} */
    onStatus(callback) {
      onStatus.add(callback);
      callback(status);
      return () => onStatus.delete(callback);
    },
    /** @param {string} sql @param {readonly unknown[]} [params] @returns {Promise<Record<string, unknown>[]>} */
    query(sql, params = []) {
      const id = crypto.randomUUID();
      return new Promise((resolve, reject) => {
        const one = /** @type {Ask} */ ({ kind: "query", id, sql, params });
        const done = (/** @type {() => void} */ settle) => (open.delete(id), settle());
        open.set(id, { ask: one, rows: (rows) => done(() => resolve(rows)), error: (error) => done(() => reject(error)) });
        if (server) ask(one);
      });
    },
    /** As `Replica.live`. @param {string} sql @param {readonly unknown[]} params @param {(rows: Record<string, unknown>[]) => void} callback @param {{onError?: (error: unknown) => void}} [more] @returns {() => void} */
    live(sql, params, callback, { onError = () => {} } = {}) {
      const id = crypto.randomUUID();
      const one = /** @type {Ask} */ ({ kind: "live", id, sql, params });
      open.set(id, { ask: one, rows: callback, error: onError });
      if (server) ask(one);
      return () => {
        open.delete(id);
        ask({ kind: "end", id });
      };
    },
    pause: () => ask({ kind: "pause" }),
    resume: () => ask({ kind: "resume" }),
    close() {
      clearInterval(hello);
      for (const id of open.keys()) ask({ kind: "end", id });
      channel.close();
    },
  };
}
