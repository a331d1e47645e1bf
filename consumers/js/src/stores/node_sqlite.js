/** A store in a SQLite file, by Node's own module `node:sqlite` (Node 22.13 and later). */

import { meaningOf, narrowed, SqliteStore } from "./sqlite_store.js";

/**
 * Open or create a file in write-ahead mode: readers in other processes never wait and see whole transactions.
 * @param {string} path
 */
export async function nodeSqliteStore(path) {
  const name = "node:sqlite"; // older versions of Node cannot resolve it
  const { DatabaseSync } = await import(name);
  const db = new DatabaseSync(path);
  db.exec("PRAGMA busy_timeout = 30000; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = 16777216");
  /** @type {any} */
  let writer = null;
  /** @type {Map<string, any>} */
  const prepared = new Map();
  const prepare = (/** @type {string} */ sql) => {
    let statement = prepared.get(sql);
    if (statement === undefined) {
      if (prepared.size >= 200) prepared.clear();
      prepared.set(sql, (statement = db.prepare(sql)));
      statement.setReadBigInts(true);
    }
    return statement;
  };
  const objects = (/** @type {string} */ sql, /** @type {readonly unknown[]} */ params) =>
    prepare(sql).all(...params).map((/** @type {object} */ row) =>
      Object.fromEntries(Object.entries(row).map(([name, value]) => [name, narrowed(value)])));
  return new SqliteStore({
    exec: (sql) => void db.exec(sql),
    runAll(sql, rows) {
      const statement = prepare(sql);
      let changed = 0;
      for (const params of rows) changed += Number(statement.run(...params).changes);
      return changed;
    },
    arrays: (sql, params) => objects(sql, params).map((/** @type {object} */ row) => Object.values(row)),
    objects,
    classify(error) {
      const code = /** @type {any} */ (error)?.code === "ERR_SQLITE_ERROR" ? /** @type {any} */ (error).errcode : null;
      return code === null ? null : meaningOf(Number(code));
    },
    claim() {
      if (path === ":memory:") return;
      writer = new DatabaseSync(`${path}-writer`); // a lock that ends with the process
      writer.exec("PRAGMA busy_timeout = 10000; BEGIN EXCLUSIVE");
    },
    close() {
      db.close();
      writer?.close();
    },
  });
}
