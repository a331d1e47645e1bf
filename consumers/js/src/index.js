/** A live copy of PostgreSQL tables where the user is: in a browser, over WebSocket. */

import { wsconnect } from "@nats-io/nats-core";

import { openWith } from "./replica.js";

export { Replica } from "./replica.js";
export { ApplyConflict, Fatal, OutOfDate, ReplicaError, Transient } from "./errors.js";
export { pgliteStore } from "./stores/pglite.js";
export { sqliteWasmStore } from "./stores/sqlite_wasm.js";
export { joinTabs, serveTabs } from "./tabs.js";

/**
 * Open a live copy of tables. It connects, copies what it does not have yet, and follows, until `close`.
 * @param {import("./replica.js").ReplicaOptions} options
 */
export const openReplica = (options) =>
  openWith(options, (servers, more) => wsconnect({ servers, ...more }));
