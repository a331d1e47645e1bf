/** The worker of a tab: of all tabs' workers, one has the lock, writes the store, and serves every tab. */

import { openReplica, pgliteStore, serveTabs, sqliteWasmStore } from "../src/index.js";

const options = Object.fromEntries(new URLSearchParams(location.search));
const { servers, user, pass, name = "demo", kind = "sqlite", tables = "" } = options;

async function openStore() {
  if (kind === "sqlite") {
    const { default: init } = await import("@sqlite.org/sqlite-wasm");
    return sqliteWasmStore(await init(), name);
  }
  const { PGlite } = await import("@electric-sql/pglite");
  return pgliteStore(await PGlite.create(`opfs-ahp://walbridge-${name}`, { relaxedDurability: true }));
}

const commits = [];
serveTabs(name, async () => {
  const replica = await openReplica({
    servers, store: await openStore(), tables: tables.split(",").filter(Boolean), nats: user ? { user, pass } : {},
    zstdUrl: new URL("zstd.wasm", location.href).href, log: (words) => console.log(words),
  });
  replica.onCommit(({ tables: changed, commitMs }) => {
    commits.push({ tables: changed, ms: commitMs ? Date.now() - commitMs : null });
    if (commits.length === 1) setTimeout(() => postMessage({ commits: commits.splice(0) }), 50);
  });
  return replica;
}).catch((error) => postMessage({ error: String(error?.message ?? error) }));
