/** The stores that tests can open here: what is not installed is left out. */

import { createRequire } from "node:module";

import { pgliteStore } from "../src/stores/pglite.js";
import { sqliteWasmStore } from "../src/stores/sqlite_wasm.js";

const require = createRequire(import.meta.url);
const has = (name) => {
  try {
    require.resolve(name);
    return true;
  } catch {
    return false;
  }
};
const [major, minor] = process.versions.node.split(".").map(Number);

/** Kinds of stores that keep their rows in a file, or can. */
export const KINDS = [
  ...(major > 22 || (major === 22 && minor >= 13) ? ["node-sqlite"] : []),
  ...(has("better-sqlite3") ? ["better-sqlite3"] : []),
  "sqlite-wasm",
  "pglite",
];

/** Open a store; without a path in memory. */
export async function openStore(kind, path) {
  if (kind === "node-sqlite") return (await import("../src/stores/node_sqlite.js")).nodeSqliteStore(path ?? ":memory:");
  if (kind === "better-sqlite3") return (await import("../src/stores/better_sqlite3.js")).betterSqlite3Store(path ?? ":memory:");
  if (kind === "sqlite-wasm") {
    const { default: init } = await import("@sqlite.org/sqlite-wasm");
    return sqliteWasmStore(await init());
  }
  const { PGlite } = await import("@electric-sql/pglite");
  if (path !== undefined) return pgliteStore(await PGlite.create(path));
  // a database takes seconds to make: one for all tests of a process, empty each time
  shared ??= PGlite.create();
  const db = await shared;
  const schemas = await db.query("SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema)'");
  for (const { nspname } of schemas.rows) await db.exec(`DROP SCHEMA "${nspname}" CASCADE`);
  await db.exec("CREATE SCHEMA public");
  const store = pgliteStore(db);
  store.close = async () => {};
  return store;
}

let shared;
