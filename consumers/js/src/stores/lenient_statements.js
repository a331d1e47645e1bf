/** The statements that apply changes to a copy that may lack any row, while it comes in rounds. */

import { effectOf } from "../rules/ranges.js";
import { columnList, quoted } from "./dialect.js";
import { RowStatements } from "./row_statements.js";
import { keyOf } from "./shapes.js";

/**
 * @typedef {import("./dialect.js").Statement} Statement
 * @typedef {import("../contract/records.js").Row} Row
 */

/** @param {readonly string[]} names @returns {Row} */
const nulls = (names) => Object.fromEntries(names.map((name) => [name, null]));

/** Makes statements by the rule for snapshots in rounds. Rows are found by the primary key, which is that of events. */
export class LenientStatements {
  #dialect;
  #rows;
  #missing;
  #key;
  /** @type {Map<string, string>} */
  #upserts = new Map();

  /** @param {import("./dialect.js").Dialect} dialect @param {import("./shapes.js").TableShape} shape The staging table's. */
  constructor(dialect, shape) {
    this.#dialect = dialect;
    this.shape = shape;
    this.#key = keyOf(shape);
    this.#rows = new RowStatements(dialect, shape);
    const kept = this.#key.map((name) => shape.columns.findIndex((column) => column.name === name));
    /** The table of the keys of rows that lack values. @type {import("./shapes.js").TableShape} */
    this.missingShape = {
      ...shape, local: [shape.local[0], shape.local[1].replace("_new_", "_missing_")],
      columns: kept.map((i) => shape.columns[i]), localTypes: kept.map((i) => shape.localTypes[i]),
    };
    this.#missing = new RowStatements(dialect, this.missingShape);
  }

  /** The statements of one event. Throws UnknownColumn and NamesNoRow for one that does not fit. @param {import("../contract/records.js").Change | import("../contract/records.js").Truncate} change @returns {Statement[]} */
  of(change) {
    // keys of rows that are gone may stay among the missing ones: the answer to a request for them says that they are gone
    if (change.kind === "truncate") return [this.#statement(this.#rows.truncate())];
    const { oldKey, row, missing, unknown, isMoved } = effectOf(change, this.#key);
    const identity = { columns: this.#key, row: oldKey ?? {}, whole: false };
    if (row === null) return [this.#statement(this.#rows.delete(identity))];
    if (oldKey === null) {
      const upsert = this.#upsert({ ...row, ...nulls(missing) }, "UPDATE");
      return missing.length > 0 ? [upsert, this.#noteMissing(row)] : [upsert];
    }
    const written = { ...row, ...nulls(unknown) };
    const made = [this.#statement(this.#rows.update(written, identity))];
    if (isMoved) made.push(this.#upsert({ ...written, ...nulls(missing) }, "NOTHING"));
    if (isMoved ? missing.length > 0 : unknown.length > 0) made.push(this.#noteMissing(row));
    return made;
  }

  /** The statements of a chunk's rows. Until events have touched the copy, no row of a chunk can be there. @param {readonly Row[]} rows @param {boolean} isTouched @returns {Statement[]} */
  chunk(rows, isTouched) {
    return rows.map((row) => ({ ...(isTouched ? this.#upsert(row, "UPDATE") : this.#statement(this.#rows.insert(row))), isDistinct: true }));
  }

  /** Remove a chunk's rows, which have all values, from the table of missing ones. @param {readonly Row[]} rows @returns {Statement[]} */
  filled(rows) {
    return rows.map((row) => this.#statement(this.#missing.delete({ columns: this.#key, row, whole: false })));
  }

  /** The query that reads so many keys of incomplete rows, as values that can be bound again. @param {number} limit */
  incomplete(limit) {
    const columns = this.#key.map((name) => this.#dialect.keyValue(name)).join(", ");
    return `SELECT ${columns} FROM ${this.#dialect.table(this.missingShape.local)} LIMIT ${limit}`;
  }

  /** Remove the rows of these keys, as `incomplete` read them, from both tables. @param {unknown[][]} keys @returns {Statement[]} */
  forget(keys) {
    return [this.#delete(this.shape.local, keys), this.notMissing(keys)];
  }

  /** Remove these keys from the table of missing ones alone: what their rows lack stays unknown. @param {unknown[][]} keys @returns {Statement} */
  notMissing(keys) {
    return this.#delete(this.missingShape.local, keys);
  }

  /** @param {import("./dialect.js").Local} local @param {unknown[][]} keys @returns {Statement} */
  #delete(local, keys) {
    const where = this.#key.map((name, i) => `${quoted(name)} = ${this.#dialect.parameter(i + 1)}`).join(" AND ");
    return { sql: `DELETE FROM ${this.#dialect.table(local)} WHERE ${where}`, params: keys, token: this.shape.token };
  }

  /** @param {Row} row */
  #noteMissing(row) {
    const [sql, params] = this.#missing.insert(Object.fromEntries(this.#key.map((name) => [name, row[name]])));
    return this.#statement([this.#onConflict(sql, "NOTHING", []), params]);
  }

  /** @param {Row} row @param {"UPDATE" | "NOTHING"} what */
  #upsert(row, what) {
    const [sql, params] = this.#rows.insert(row);
    return this.#statement([this.#onConflict(sql, what, Object.keys(row).filter((name) => !this.#key.includes(name))), params]);
  }

  /** @param {string} insert @param {"UPDATE" | "NOTHING"} what @param {readonly string[]} names */
  #onConflict(insert, what, names) {
    const known = this.#upserts.get(what + insert);
    if (known !== undefined) return known;
    const sets = names.map((name) => `${quoted(name)} = excluded.${quoted(name)}`).join(", ");
    const then = what === "UPDATE" && sets ? `UPDATE SET ${sets}` : "NOTHING";
    const sql = `${insert} ON CONFLICT (${columnList(this.#key)}) DO ${then}`;
    this.#upserts.set(what + insert, sql);
    return sql;
  }

  /** @param {[sql: string, params: unknown[]]} bound @returns {Statement} */
  #statement([sql, params]) {
    return { sql, params: [params], token: this.shape.token };
  }
}

/** Join runs of one statement. @param {Iterable<Statement>} statements @returns {Statement[]} */
export function joined(statements) {
  /** @type {Statement[]} */
  const found = [];
  for (const one of statements) {
    const newest = found.at(-1);
    if (newest?.sql === one.sql) newest.params.push(...one.params);
    else found.push({ ...one, params: [...one.params] });
  }
  return found;
}
