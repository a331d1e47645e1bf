/** A store in SQLite's own WebAssembly: in a worker on the browser's private file system, elsewhere in memory. */

import { Fatal } from "../errors.js";
import { meaningOf, narrowed, SqliteStore } from "./sqlite_store.js";

const [CLAIM_TRIES, CLAIM_EVERY_MS] = [40, 250];
/** A pool of files in the origin's private file system, which only a dedicated worker may open. */
const POOL = { directory: ".walbridge", initialCapacity: 6 };

/**
 * Open a database. `sqlite3`: what `sqlite3InitModule()` of @sqlite.org/sqlite-wasm returned. `name`: a database that stays after
 * the tab is closed (in a worker only), or ":memory:".
 * @param {any} sqlite3 @param {string} [name]
 */
export async function sqliteWasmStore(sqlite3, name = ":memory:") {
  /** @type {any} */
  let db;
  if (name === ":memory:") db = new sqlite3.oo1.DB(":memory:", "c");
  else {
    const pool = await openPool(sqlite3, name);
    db = new pool.OpfsSAHPoolDb(`/${name}`);
    db.exec("PRAGMA journal_mode = TRUNCATE; PRAGMA synchronous = NORMAL");
  }
  /** @type {Map<string, any>} */
  const prepared = new Map();
  const prepare = (/** @type {string} */ sql) => {
    let statement = prepared.get(sql);
    if (statement === undefined) {
      if (prepared.size >= 200) finalize();
      prepared.set(sql, (statement = db.prepare(sql)));
    }
    return statement;
  };
  const finalize = () => {
    for (const statement of prepared.values()) statement.finalize();
    prepared.clear();
  };
  const read = (/** @type {string} */ sql, /** @type {readonly unknown[]} */ params, /** @type {"array" | "object"} */ rowMode) => {
    const bind = params.length > 0 ? params : undefined;
    return db.exec({ sql, bind, rowMode, returnValue: "resultRows" });
  };
  return new SqliteStore({
    exec: (sql) => void db.exec(sql),
    runAll(sql, rows) {
      if (/^(ALTER|CREATE|DROP)/.test(sql)) { // a statement that was prepared would keep the table locked
        finalize();
        db.exec(sql);
        return rows.length;
      }
      const statement = prepare(sql);
      let changed = 0;
      try {
        for (const params of rows) {
          if (params.length > 0) statement.bind(params);
          statement.step();
          changed += db.changes();
          statement.reset(true);
        }
      } catch (error) {
        prepared.delete(sql);
        statement.finalize();
        throw error;
      }
      return changed;
    },
    arrays: (sql, params) => read(sql, params, "array").map((/** @type {unknown[]} */ row) => row.map(narrowed)),
    objects: (sql, params) => read(sql, params, "object"),
    classify: (error) => (error instanceof sqlite3.SQLite3Error ? meaningOf(Number(/** @type {any} */ (error).resultCode)) : null),
    close() {
      finalize();
      db.close();
    },
  });
}

/** A tab that was just closed may hold the files for a moment. @param {any} sqlite3 @param {string} name */
async function openPool(sqlite3, name) {
  for (let left = CLAIM_TRIES; ; left--) {
    try {
      return await sqlite3.installOpfsSAHPoolVfs({ ...POOL, directory: `${POOL.directory}-${name}`, forceReinitIfPreviouslyFailed: true });
    } catch (error) {
      if (left === 0) throw new Fatal(`the store ${name} cannot be opened: ${error}`, { code: "WB502", cause: error });
      await new Promise((resolve) => setTimeout(resolve, CLAIM_EVERY_MS));
    }
  }
}
