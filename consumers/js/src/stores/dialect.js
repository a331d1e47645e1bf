/** The SQL of a copy's tables and of the replica's own tables, in each database's dialect: those of `walbridge mirror`. */

import { postgresBinder, sqliteBinder } from "./binding.js";
import { keyOf } from "./shapes.js";

/**
 * One statement that is executed once for each of `params`. `counted`: each execution must change exactly one row. `token` is
 * the table whose rows it changes, empty for the replica's own tables. `isRow`: each execution is a change of the source.
 * `isDistinct`: no two of `params` are of one key, so that an upsert of many rows at once meets none twice.
 * @typedef {{sql: string, params: unknown[][], counted?: boolean, token?: string, isRow?: boolean, isDistinct?: boolean}} Statement
 * @typedef {readonly [schema: string, name: string]} Local
 */

/** @param {string} name */
export const quoted = (name) => `"${name.replaceAll('"', '""')}"`;
/** @param {Iterable<string>} names */
export const columnList = (names) => Array.from(names, quoted).join(", ");

/** Columns that replicas made by earlier versions get: table, column, type. */
export const LATER_COLUMNS = [
  ["position", "message_seq", "bigint NOT NULL DEFAULT 0"],
  ["position", "message_id", "text NOT NULL DEFAULT ''"],
  ["tables", "version", "text NOT NULL DEFAULT ''"],
  ["tables", "told_version", "text NOT NULL DEFAULT ''"],
  ["tables", "told_seq", "bigint NOT NULL DEFAULT 0"],
  ["owner", "everything", "int NOT NULL DEFAULT 0"],
  ["owner", "format", "int NOT NULL DEFAULT 1"],
];

/** The SQL of one kind of database. */
export class Dialect {
  scheme = "";

  /** Why a table with these columns cannot exist; empty when it can. @param {readonly string[]} columns @returns {string} */
  obstacle(columns) {
    return columns.includes("__proto__") ? "a column is named __proto__" : "";
  }

  /** The column by which the database itself identifies rows. @param {readonly string[]} columns @returns {string | null} */
  rowId(columns) {
    throw new Error(`abstract: ${columns}`);
  }

  /** @param {Local} local @returns {string} */
  table(local) {
    throw new Error(`abstract: ${local}`);
  }

  /** The schema and name of the copy of a source table. @param {string} schema @param {string} table @returns {Local} */
  localName(schema, table) {
    return [schema, table];
  }

  /** The quoted name of one of the replica's own tables. @param {string} name @returns {string} */
  own(name) {
    throw new Error(`abstract: ${name}`);
  }

  /** The placeholder of a parameter, counted from 1. @param {number} index @returns {string} */
  parameter(index) {
    return `$${index}`;
  }

  /** The condition that a column equals a parameter, where NULL equals NULL. @param {string} name @param {string} localType @param {number} index @returns {string} */
  isSame(name, localType, index) {
    throw new Error(`abstract: ${name}, ${localType}, ${index}`);
  }

  /** @param {string} words @returns {import("./binding.js").Binder} */
  binder(words) {
    throw new Error(`abstract: ${words}`);
  }

  /** The statements that create the replica's own tables where they are missing. @returns {string[]} */
  schemaStatements() {
    return [
      `CREATE TABLE IF NOT EXISTS ${this.own("position")} (id int PRIMARY KEY, stream text NOT NULL, created text NOT NULL,` +
        " stream_seq bigint NOT NULL, lsn bigint NOT NULL, seq bigint NOT NULL, place int NOT NULL)",
      `CREATE TABLE IF NOT EXISTS ${this.own("tables")} (token text PRIMARY KEY, local_schema text NOT NULL,` +
        " local_name text NOT NULL, state text NOT NULL, reason text NOT NULL, source_schema text NOT NULL," +
        " source_table text NOT NULL, relation_id bigint NOT NULL, columns text NOT NULL, keyed int NOT NULL," +
        " snapshot_id text NOT NULL, snapshot_lsn bigint NOT NULL, needed_seq bigint NOT NULL, init_seq bigint NOT NULL)",
      `CREATE TABLE IF NOT EXISTS ${this.own("verify")} (id text PRIMARY KEY, state text NOT NULL, lsn bigint NOT NULL,` +
        " alive bigint NOT NULL)",
      `CREATE TABLE IF NOT EXISTS ${this.own("owner")} (id int PRIMARY KEY, session text NOT NULL)`,
      `CREATE TABLE IF NOT EXISTS ${this.own("verified")} (token text PRIMARY KEY, checked_at bigint NOT NULL,` +
        " equal_at bigint NOT NULL DEFAULT 0, mismatched bigint NOT NULL)",
      `CREATE TABLE IF NOT EXISTS ${this.own("rounds")} (token text PRIMARY KEY, snapshot_id text NOT NULL,` +
        " created text NOT NULL, init_seq bigint NOT NULL, init_at bigint NOT NULL, chunks bigint NOT NULL," +
        " rows_done bigint NOT NULL, stream_seq bigint NOT NULL, lsn bigint NOT NULL, seq bigint NOT NULL," +
        " snapshot_lsn bigint NOT NULL, touched int NOT NULL)",
    ];
  }

  /** Where a snapshot is gathered: a name that no other table's staging has. @param {Local} local @param {string} token @returns {Local} */
  stagingName(local, token) {
    let hash = 0xcbf29ce484222325n; // FNV-1a
    for (const byte of new TextEncoder().encode(token)) hash = BigInt.asUintN(64, (hash ^ BigInt(byte)) * 0x100000001b3n);
    return [local[0], `_walbridge_new_${hash.toString(16).padStart(16, "0")}`];
  }

  /** @param {import("./shapes.js").TableShape} shape */
  createTable(shape) {
    const columns = shape.columns.map(({ name }, i) => `${quoted(name)} ${shape.localTypes[i]}`.trimEnd());
    const pk = keyOf(shape);
    if (pk.length > 0) columns.push(`PRIMARY KEY (${columnList(pk)})`);
    return `CREATE TABLE ${this.table(shape.local)} (${columns.join(", ")})`;
  }

  /** @param {Local} local */
  dropTable(local) {
    return `DROP TABLE IF EXISTS ${this.table(local)}`;
  }

  /** @param {Local} local @param {string} name @returns {string[]} */
  renameTable(local, name) {
    return [`ALTER TABLE ${this.table(local)} RENAME TO ${quoted(name)}`];
  }

  /** @param {Local} local @param {string} name @param {string} type */
  addColumn(local, name, type) {
    return `ALTER TABLE ${this.table(local)} ADD COLUMN ${quoted(name)} ${type}`.trimEnd();
  }

  /** @param {Local} local @param {string} name */
  dropColumn(local, name) {
    return `ALTER TABLE ${this.table(local)} DROP COLUMN ${quoted(name)}`;
  }

  /** Replace a table's rows by the gathered ones: indexes and views on it stay. @param {import("./shapes.js").TableShape} shape @param {Local} staging */
  refill(shape, staging) {
    const columns = columnList(shape.columns.map(({ name }) => name));
    const live = this.table(shape.local);
    return [
      `DELETE FROM ${live}`,
      `INSERT INTO ${live} (${columns}) SELECT ${columns} FROM ${this.table(staging)}`,
      this.dropTable(staging),
    ];
  }

  /** A column of a key as a value that can be bound again and that the bridge reads. @param {string} name */
  keyValue(name) {
    return quoted(name);
  }

  /** Insert or replace a row of one of the replica's own tables. @param {string} table @param {string} key @param {Record<string, unknown>} values @returns {Statement} */
  save(table, key, values) {
    const names = Object.keys(values);
    const marks = names.map((_, i) => this.parameter(i + 1)).join(", ");
    const sets = names.filter((name) => name !== key).map((name) => `${name} = excluded.${name}`).join(", ");
    const sql = `INSERT INTO ${this.own(table)} (${names.join(", ")}) VALUES (${marks}) ON CONFLICT (${key}) DO UPDATE SET ${sets}`;
    return { sql, params: [Object.values(values)] };
  }
}

/** SQLite: no schemas, few types, any value in any column. */
export class SqliteDialect extends Dialect {
  scheme = "sqlite";

  /** @param {readonly string[]} columns */
  obstacle(columns) {
    const lower = columns.map((name) => name.replace(/[A-Z]/g, (letter) => letter.toLowerCase()));
    if (new Set(lower).size !== columns.length) {
      return "two of its columns differ only in upper and lower case, which SQLite cannot distinguish";
    }
    return this.rowId(columns) === null ? "its columns have all the names by which SQLite identifies a row" : super.obstacle(columns);
  }

  /** A column of the same name hides it. @param {readonly string[]} columns */
  rowId(columns) {
    const taken = new Set(columns.map((name) => name.toLowerCase()));
    return ["rowid", "_rowid_", "oid"].find((name) => !taken.has(name)) ?? null;
  }

  /** @param {Local} local */
  table(local) {
    return quoted(local[1]);
  }

  /** @param {string} schema @param {string} table @returns {Local} */
  localName(schema, table) {
    const isPlain = schema === "public" && !table.includes(".") && !/^(sqlite_|_walbridge_)/i.test(table);
    return ["", isPlain ? table : `${schema}.${table}`];
  }

  /** @param {string} name */
  own(name) {
    return `_walbridge_${name}`;
  }

  parameter() {
    return "?";
  }

  /** @param {string} name */
  isSame(name) {
    return `${quoted(name)} IS ?`;
  }

  /** @param {string} words */
  binder(words) {
    return sqliteBinder(words);
  }
}

/** PostgreSQL, as PGlite has it in a page. */
export class PostgresDialect extends Dialect {
  scheme = "postgresql";

  rowId() {
    return "ctid";
  }

  /** @param {string} name */
  keyValue(name) {
    return `${quoted(name)}::text`;
  }

  /** @param {Local} local */
  table(local) {
    return `${quoted(local[0])}.${quoted(local[1])}`;
  }

  /** @param {string} name */
  own(name) {
    return `_walbridge.${name}`;
  }

  /** Rename the key's index too, to the name that PostgreSQL would give it, unless another has that name. @param {Local} local @param {string} name */
  renameTable(local, name) {
    const [was, becomes] = [local[1], name].map((table) => quoted(`${truncated(table)}_pkey`));
    const index = `ALTER INDEX IF EXISTS ${quoted(local[0])}.${was} RENAME TO ${becomes}`;
    let tag = "$walbridge$";
    while (index.includes(tag)) tag = tag.replace(/\$$/, "_$");
    return [...super.renameTable(local, name), `DO ${tag} BEGIN ${index}; EXCEPTION WHEN duplicate_table THEN NULL; END ${tag}`];
  }

  /** Not every type has an equality operator, but each has a text form. @param {string} name @param {string} localType @param {number} index */
  isSame(name, localType, index) {
    return `${quoted(name)}::text IS NOT DISTINCT FROM ($${index}::${localType})::text`;
  }

  /** @param {string} words */
  binder(words) {
    return postgresBinder(words);
  }

  schemaStatements() {
    return ["CREATE SCHEMA IF NOT EXISTS _walbridge", ...super.schemaStatements()];
  }
}

/** What is left of a table's name in the name of its key's index: names have 63 bytes. @param {string} table */
function truncated(table) {
  const bytes = new TextEncoder().encode(table).subarray(0, 58);
  return new TextDecoder().decode(bytes).replace(/\ufffd+$/, "");
}
