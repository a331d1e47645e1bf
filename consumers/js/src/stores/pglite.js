/** A store in PGlite: PostgreSQL in the page or in Node, with most of the source's types. */

import { ApplyConflict, Fatal, Transient } from "../errors.js";
import { inUse } from "../mirror/replica_state.js";
import { LATER_COLUMNS, PostgresDialect, quoted } from "./dialect.js";

/** SQLSTATEs that are not about rows: resources, I/O, and PostgreSQL's own faults, among them a browser without room. */
const PASSES = /^(53|58|XX)/;
const UNIQUE_VIOLATION = "23505";
/** New rows of a table in one statement. */
const ROWS_PER_INSERT = 500;
const PARAMETERS_MAX = 32_000;
/** What follows the values of an upsert. */
const UPSERT = / ON CONFLICT \((?:"(?:[^"]|"")*"(?:, )?)+\) DO .*$/s;
/** OIDs of types for which PGlite wants values of JavaScript, where the store has PostgreSQL's own text: boolean, bytea, json, jsonb. */
const TEXTS = [16, 17, 114, 3802];
const AS_TEXT = { serializers: Object.fromEntries(TEXTS.map((oid) => [oid, (/** @type {string} */ text) => text])) };

/** @implements {Required<import("./store.js").Store>} */
class PgliteStore {
  dialect = new PostgresDialect();
  #db;
  #isOpen = false;

  /** @param {any} db */
  constructor(db) {
    this.#db = db;
  }

  async claim() {
    // synchronous_commit stays on: PGlite has no process that would write the log later
    await this.#db.exec("SET search_path = pg_catalog, public");
    await this.run(this.dialect.schemaStatements().map((sql) => ({ sql, params: [[]] })), true);
    for (const [table, name, type] of LATER_COLUMNS) {
      if ((await this.columns(["_walbridge", table])).includes(name)) continue;
      await this.run([{ sql: `ALTER TABLE ${this.dialect.own(table)} ADD COLUMN ${name} ${type}`, params: [[]] }], true);
    }
  }

  /** @param {readonly import("./dialect.js").Statement[]} statements @param {boolean} commit */
  async run(statements, commit) {
    let token = "";
    try {
      if (!this.#isOpen) await this.#db.exec("BEGIN");
      this.#isOpen = true;
      for (const statement of statements) {
        token = statement.token ?? "";
        await this.#execute(statement, token);
      }
      token = "";
      if (commit) {
        await this.#db.exec("COMMIT");
        this.#isOpen = false;
      }
    } catch (error) {
      const code = /** @type {any} */ (error)?.code;
      if (typeof code !== "string" || error instanceof ApplyConflict || error instanceof Fatal) throw error;
      const said = `${code} ${/** @type {any} */ (error).message}`;
      if (PASSES.test(code)) throw new Transient(`the store cannot be used now: ${said}`, { code: "WB503", fix: "it needs room on the disk", cause: error });
      if (token) throw new ApplyConflict(token, said, code === UNIQUE_VIOLATION);
      throw new Fatal(`the store refuses a statement: ${said}`, { code: "WB504", cause: error });
    }
  }

  /** @param {import("./dialect.js").Statement} statement @param {string} token */
  async #execute({ sql, params, counted, isDistinct }, token) {
    const isMany = params.length > 1 && /^INSERT INTO .* VALUES \(\$1/s.test(sql);
    if (isMany && (isDistinct || !UPSERT.test(sql))) return this.#insert(sql, params);
    if (params.length === 1 && params[0].length === 0) {
      await this.#db.exec(sql);
      return;
    }
    for (const one of params) {
      const { affectedRows } = await this.#db.query(sql, one.map(asText), AS_TEXT);
      if (!counted || affectedRows === 1) continue;
      if (!token) throw inUse();
      throw new ApplyConflict(token, `a change met ${affectedRows} rows: ${sql}`);
    }
  }

  /** Many rows at once: a statement's cost here is mostly not that of its rows. @param {string} sql @param {readonly (readonly unknown[])[]} rows */
  async #insert(sql, rows) {
    const head = sql.slice(0, sql.lastIndexOf(" VALUES ($1") + 8);
    const tail = UPSERT.exec(sql)?.[0] ?? "";
    const width = rows[0].length;
    const step = Math.max(1, Math.min(ROWS_PER_INSERT, Math.floor(PARAMETERS_MAX / width)));
    for (let first = 0; first < rows.length; first += step) {
      const some = rows.slice(first, first + step);
      const marks = some.map((_, row) => `(${Array.from({ length: width }, (_, i) => `$${row * width + i + 1}`).join(", ")})`);
      await this.#db.query(head + marks.join(", ") + tail, some.flat().map(asText), AS_TEXT);
    }
  }

  async rollback() {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    await this.#db.exec("ROLLBACK");
  }

  /** @param {string} sql @param {readonly unknown[]} [params] @returns {Promise<unknown[][]>} */
  async query(sql, params = []) {
    return (await this.#db.query(sql, [...params], { rowMode: "array" })).rows;
  }

  /** @param {string} sql @param {readonly unknown[]} [params] @returns {Promise<Record<string, unknown>[]>} */
  async select(sql, params = []) {
    return (await this.#db.query(sql, [...params])).rows;
  }

  /** @param {string} sql @param {readonly unknown[]} [params] */
  async tablesOf(sql, params = []) {
    const [[plans]] = await this.query(`EXPLAIN (FORMAT JSON, VERBOSE) ${sql}`, params);
    /** @type {Set<string>} */
    const found = new Set();
    let isKnown = true;
    const walk = (/** @type {any} */ node) => {
      if (node["Node Type"] === "Function Scan") isKnown = false; // a function may read anything
      if (node["Relation Name"]) found.add(node.Schema === "public" ? node["Relation Name"] : `${node.Schema}.${node["Relation Name"]}`);
      for (const one of node.Plans ?? []) walk(one);
    };
    for (const { Plan } of /** @type {any[]} */ (typeof plans === "string" ? JSON.parse(plans) : plans)) walk(Plan);
    return isKnown ? found : null;
  }

  /** @param {readonly import("../contract/records.js").Column[]} columns */
  async localTypes(columns) {
    const types = [];
    for (const { type } of columns) { // -1, not NULL: `character` alone would have length 1
      const [[name]] = await this.query("SELECT coalesce(format_type(to_regtype($1), -1), 'text')", [type]);
      types.push(/^(-|\?\?\?|reg)/.test(String(name)) ? "text" : String(name)); // regclass: an object that may be missing here
    }
    return types;
  }

  /** @param {import("./dialect.js").Local} local */
  async exists(local) {
    const sql = "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = $1 AND relname = $2";
    return (await this.query(sql, [...local])).length > 0;
  }

  /** @param {import("./dialect.js").Local} local */
  async columns(local) {
    const rows = await this.query(
      "SELECT attname::text FROM pg_attribute JOIN pg_class c ON c.oid = attrelid JOIN pg_namespace n ON n.oid = relnamespace" +
        " WHERE nspname = $1 AND relname = $2 AND attnum > 0 AND NOT attisdropped",
      [...local],
    );
    return rows.map(([name]) => String(name));
  }

  /** @param {import("./dialect.js").Local} local */
  async makeSchema([schema]) {
    const has = await this.query("SELECT 1 FROM pg_namespace WHERE nspname = $1", [schema]);
    return has.length > 0 ? [] : [`CREATE SCHEMA IF NOT EXISTS ${quoted(schema)}`];
  }

  async close() {
    await this.#db.close();
  }
}

/** A parameter as a text that PostgreSQL reads. @param {unknown} value */
const asText = (value) => (value === null || typeof value === "string" ? value : String(value));

/**
 * A store in an open PGlite. Its other users must not write to the copied tables, and read by the replica's `query`, which never
 * sees half a transaction.
 * @param {any} db @returns {import("./store.js").Store}
 */
export const pgliteStore = (db) => new PgliteStore(db);
