/** A store in a SQLite file, by the package better-sqlite3. */

import { createRequire } from "node:module";

import { narrowed, SqliteStore } from "./sqlite_store.js";

const CODES = /^SQLITE_(BUSY|LOCKED|IOERR|FULL)/;

/**
 * Open or create a file in write-ahead mode: readers in other processes never wait and see whole transactions.
 * @param {string} path @param {any} [Database] The class of better-sqlite3; by default it is loaded.
 */
export function betterSqlite3Store(path, Database = createRequire(import.meta.url)("better-sqlite3")) {
  const open = () => {
    const db = new Database(path, { timeout: 30_000 });
    db.defaultSafeIntegers(true);
    return db;
  };
  const db = open();
  db.pragma("journal_mode = WAL");
  db.pragma("synchronous = NORMAL");
  db.pragma("journal_size_limit = 16777216"); // else the log keeps the size that it reached beside a long reader
  /** @type {any} */
  let writer = null;
  /** @type {Map<string, any>} */
  const prepared = new Map();
  const prepare = (/** @type {string} */ sql) => {
    let statement = prepared.get(sql);
    if (statement === undefined) {
      if (prepared.size >= 200) prepared.clear();
      prepared.set(sql, (statement = db.prepare(sql)));
    }
    return statement;
  };
  return new SqliteStore({
    exec: (sql) => void db.exec(sql),
    runAll(sql, rows) {
      const statement = prepare(sql);
      let changed = 0;
      for (const params of rows) changed += statement.run(...params).changes;
      return changed;
    },
    arrays: (sql, params) => prepare(sql).raw(true).all(...params).map((/** @type {unknown[]} */ row) => row.map(narrowed)),
    objects: (sql, params) =>
      prepare(sql).raw(false).all(...params).map((/** @type {object} */ row) =>
        Object.fromEntries(Object.entries(row).map(([name, value]) => [name, narrowed(value)]))),
    classify(error) {
      const code = error instanceof Database.SqliteError ? String(/** @type {any} */ (error).code) : null;
      if (code === null) return null;
      if (/^SQLITE_CONSTRAINT_(PRIMARYKEY|UNIQUE|ROWID)$/.test(code)) return "duplicate";
      return CODES.test(code) ? "passes" : "other";
    },
    claim() {
      if (path === ":memory:" || path === "") return;
      writer = new Database(`${path}-writer`, { timeout: 10_000 }); // a lock that ends with the process
      writer.exec("BEGIN EXCLUSIVE");
    },
    close() {
      db.close();
      writer?.close();
    },
  });
}
