/** A store in SQLite, whichever package runs it. */

import { nativeType } from "../contract/records.js";
import { ApplyConflict, Fatal, Transient } from "../errors.js";
import { inUse } from "../mirror/replica_state.js";
import { sqliteType } from "./binding.js";
import { LATER_COLUMNS, SqliteDialect } from "./dialect.js";

/**
 * What a package of SQLite must do, synchronously. Integers beyond 2^53 are BigInts. `classify` says what an error means.
 * @typedef {object} Engine
 * @property {(sql: string) => void} exec
 * @property {(sql: string, rows: readonly (readonly unknown[])[]) => number} runAll Execute once per row; return the sum of changed rows.
 * @property {(sql: string, params: readonly unknown[]) => unknown[][]} arrays
 * @property {(sql: string, params: readonly unknown[]) => Record<string, unknown>[]} objects
 * @property {(error: unknown) => "duplicate" | "passes" | "other" | null} classify null: no error of SQLite.
 * @property {() => void} [claim] Throws when another process writes.
 * @property {() => void} close
 */

/** @implements {Required<import("./store.js").Store>} */
export class SqliteStore {
  dialect = new SqliteDialect();
  #engine;
  #isOpen = false;

  /** @param {Engine} engine */
  constructor(engine) {
    this.#engine = engine;
    engine.exec("PRAGMA cache_size = -32768");
    engine.exec("PRAGMA legacy_alter_table = ON"); // a table is replaced under its name, and views must keep referring to the name
  }

  async claim() {
    try {
      this.#engine.claim?.();
    } catch (error) {
      throw this.#engine.classify(error) === null ? error : inUse();
    }
    await this.run(this.dialect.schemaStatements().map((sql) => ({ sql, params: [[]] })), true);
    for (const [table, name, type] of LATER_COLUMNS) {
      if ((await this.columns(["", this.dialect.own(table)])).includes(name)) continue;
      await this.run([{ sql: `ALTER TABLE ${this.dialect.own(table)} ADD COLUMN ${name} ${type}`, params: [[]] }], true);
    }
  }

  /** @param {readonly import("./dialect.js").Statement[]} statements @param {boolean} commit */
  async run(statements, commit) {
    const engine = this.#engine;
    let token = "";
    try {
      if (!this.#isOpen) engine.exec("BEGIN IMMEDIATE");
      this.#isOpen = true;
      for (const statement of statements) {
        token = statement.token ?? "";
        const changed = engine.runAll(statement.sql, statement.params);
        if (statement.counted && changed !== statement.params.length) {
          if (!token) throw inUse();
          throw new ApplyConflict(token, `${statement.params.length} changes met ${changed} rows: ${statement.sql}`);
        }
      }
      token = "";
      if (commit) {
        engine.exec("COMMIT");
        this.#isOpen = false;
      }
    } catch (error) {
      const what = engine.classify(error);
      if (what === null) throw error;
      if (token && what !== "passes") throw new ApplyConflict(token, words(error), what === "duplicate");
      throw this.#refused(error);
    }
  }

  async rollback() {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    try {
      this.#engine.exec("ROLLBACK");
    } catch (error) {
      if (!words(error).includes("no transaction is active")) throw error; // SQLite has rolled back itself, as it does without room
    }
  }

  /** @param {string} sql @param {readonly unknown[]} [params] */
  async query(sql, params = []) {
    try {
      return this.#engine.arrays(sql, params);
    } catch (error) {
      throw this.#engine.classify(error) === null ? error : this.#refused(error);
    }
  }

  /** @param {string} sql @param {readonly unknown[]} [params] */
  async select(sql, params = []) {
    return this.#engine.objects(sql, params);
  }

  /** The roots of the b-trees that the query's program opens, and whose they are. @param {string} sql @param {readonly unknown[]} [params] */
  async tablesOf(sql, params = []) {
    const program = this.#engine.objects(`EXPLAIN ${sql}`, params);
    if (program.some(({ opcode }) => opcode === "VOpen")) return null;
    const roots = new Set(program.filter(({ opcode }) => /^(OpenRead|OpenWrite|ReopenIdx)$/.test(String(opcode))).map(({ p2 }) => p2));
    const owners = this.#engine.arrays("SELECT tbl_name, rootpage FROM sqlite_master", []);
    return new Set(owners.filter(([, root]) => roots.has(root)).map(([name]) => String(name)));
  }

  /** @param {readonly import("../contract/records.js").Column[]} columns */
  async localTypes(columns) {
    return columns.map((column) => sqliteType(nativeType(column)));
  }

  /** @param {import("./dialect.js").Local} local */
  async exists(local) {
    return (await this.query("SELECT 1 FROM sqlite_master WHERE lower(name) = lower(?)", [local[1]])).length > 0;
  }

  /** @param {import("./dialect.js").Local} local */
  async columns(local) {
    return (await this.query("SELECT name FROM pragma_table_info(?)", [local[1]])).map(([name]) => String(name));
  }

  async makeSchema() {
    return [];
  }

  async close() {
    this.#engine.close();
  }

  /** @param {unknown} error */
  #refused(error) {
    if (this.#engine.classify(error) === "passes") {
      return new Transient(`the store cannot be used now: ${words(error)}`, {
        code: "WB503", fix: "it needs room on the disk, and no other program that holds it open for long", cause: error,
      });
    }
    return new Fatal(`the store refuses a statement: ${words(error)}`, { code: "WB504", cause: error });
  }
}

/** @param {unknown} error */
const words = (error) => (error instanceof Error ? error.message : String(error));

/** An integer as a number where it fits, else as a BigInt. @param {unknown} value */
export const narrowed = (value) =>
  typeof value === "bigint" && value >= Number.MIN_SAFE_INTEGER && value <= Number.MAX_SAFE_INTEGER ? Number(value) : value;

/** What SQLite's extended result code means. @param {number} code https://www.sqlite.org/rescode.html */
export function meaningOf(code) {
  if ([1555, 2067, 2579].includes(code)) return "duplicate"; // CONSTRAINT_PRIMARYKEY, _UNIQUE, _ROWID
  return [5, 6, 10, 13].includes(code & 0xff) ? "passes" : "other"; // BUSY, LOCKED, IOERR, FULL
}
