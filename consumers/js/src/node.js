/** A live copy of PostgreSQL tables in Node: over TCP, TLS or WebSocket. */

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
export const openReplica = (options) => openWith(options, connect);

/** @type {import("./replica.js").Connect} */
async function connect(servers, more) {
  if (servers.every((one) => /^wss?:/.test(one))) return wsconnect({ servers, ...more });
  const { connect: connectTcp } = await import("@nats-io/transport-node");
  const credentials = servers.map((one) => /^[a-z]+:\/\/([^:@/]+):([^@/]*)@/.exec(one)).find((one) => one !== null);
  const [, user, pass] = credentials ?? [];
  const login = user === undefined ? {} : { user: decodeURIComponent(user), pass: decodeURIComponent(pass) };
  const hosts = servers.map((one) => one.replace(/^([a-z]+:\/\/)([^@/]*@)?/, "").replace(/\/$/, ""));
  const tls = servers.some((one) => one.startsWith("tls:")) ? { tls: {} } : {};
  return connectTcp({ servers: hosts, ...login, ...tls, ...more });
}
