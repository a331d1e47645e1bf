/** The statements that apply changes of rows to one table: a row is found by its key, or as any one of equal rows. */

import { PROTO } from "../contract/decoding.js";
import { nativeType } from "../contract/records.js";
import { quoted } from "./dialect.js";

/** A change has a column that is missing in the table's shape. */
export class UnknownColumn extends Error {}

/** Makes the statements of one table. The SQL is built once per set of columns. */
export class RowStatements {
  #dialect;
  #shape;
  #table;
  /** @type {Map<string, string>} */
  #types;
  /** @type {Map<string, import("./binding.js").Binder>} */
  #binders;
  /** @type {Map<string, string>} */
  #known = new Map();

  /** @param {import("./dialect.js").Dialect} dialect @param {import("./shapes.js").TableShape} shape */
  constructor(dialect, shape) {
    this.#dialect = dialect;
    this.#shape = shape;
    this.#table = dialect.table(shape.local);
    this.#types = new Map(shape.columns.map((column, i) => [column.name, shape.localTypes[i]]));
    this.#binders = new Map(shape.columns.map((column) => [column.name, dialect.binder(nativeType(column))]));
  }

  /** Insert a row. @param {import("../contract/records.js").Row} row @returns {[sql: string, params: unknown[]]} */
  insert(row) {
    const names = Object.keys(row);
    const sql = this.#sql(`i\0${names.join("\0")}`, () => {
      if (names.length === 0) return `INSERT INTO ${this.#table} DEFAULT VALUES`;
      const marks = names.map((_, i) => this.#dialect.parameter(i + 1)).join(", ");
      return `INSERT INTO ${this.#table} (${names.map(quoted).join(", ")}) VALUES (${marks})`;
    });
    return [sql, this.#values(names, row)];
  }

  /**
   * Update these columns of a row.
   * @param {import("../contract/records.js").Row} row @param {import("../rules/rows.js").Identity} identity
   * @returns {[sql: string, params: unknown[]]}
   */
  update(row, identity) {
    const names = Object.keys(row);
    const sql = this.#sql(`u${identity.whole}\0${names.join("\0")}\0\0${identity.columns.join("\0")}`, () => {
      const sets = names.map((name, i) => `${quoted(name)} = ${this.#dialect.parameter(i + 1)}`).join(", ");
      return `UPDATE ${this.#table} SET ${sets} WHERE ${this.#where(identity, names.length + 1)}`;
    });
    return [sql, [...this.#values(names, row), ...this.#values(identity.columns, identity.row)]];
  }

  /** Delete a row. @param {import("../rules/rows.js").Identity} identity @returns {[sql: string, params: unknown[]]} */
  delete(identity) {
    const sql = this.#sql(`d${identity.whole}\0${identity.columns.join("\0")}`, () =>
      `DELETE FROM ${this.#table} WHERE ${this.#where(identity, 1)}`);
    return [sql, this.#values(identity.columns, identity.row)];
  }

  /** Delete all rows. @returns {[sql: string, params: unknown[]]} */
  truncate() {
    return [`DELETE FROM ${this.#table}`, []];
  }

  /** @param {string} key @param {() => string} make */
  #sql(key, make) {
    let sql = this.#known.get(key);
    if (sql === undefined) this.#known.set(key, (sql = make()));
    return sql;
  }

  /** @param {import("../rules/rows.js").Identity} identity @param {number} first */
  #where({ columns, whole }, first) {
    const mark = (/** @type {number} */ i) => this.#dialect.parameter(first + i);
    if (!whole) return columns.map((name, i) => `${quoted(name)} = ${mark(i)}`).join(" AND ");
    const same = columns.map((name, i) => this.#dialect.isSame(name, this.#types.get(name) ?? "", first + i)).join(" AND ");
    const rowId = this.#dialect.rowId(this.#shape.columns.map(({ name }) => name));
    return `${rowId} = (SELECT ${rowId} FROM ${this.#table} WHERE ${same} LIMIT 1)`;
  }

  /** @param {readonly string[]} names @param {import("../contract/records.js").Row} row */
  #values(names, row) {
    return names.map((name) => {
      const bind = this.#binders.get(name);
      if (bind === undefined) throw new UnknownColumn(name === PROTO ? "__proto__" : name);
      return bind(row[name]);
    });
  }
}
