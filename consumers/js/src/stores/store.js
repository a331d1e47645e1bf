/**
 * The protocol between a replica and its database: local transactions of statements, and queries.
 *
 * @typedef {object} Store One connection, used by one task at a time.
 * @property {import("./dialect.js").Dialect} dialect
 * @property {() => Promise<void>} claim Become the only writer until `close`, and create the replica's own tables. Throws Fatal.
 * @property {(statements: readonly import("./dialect.js").Statement[], commit: boolean) => Promise<void>} run
 *   Run statements in the open local transaction, or in a new one; with `commit`, commit it afterwards. Throws ApplyConflict when a
 *   change does not fit the rows, Transient, Fatal; after each of them the transaction must be rolled back.
 * @property {() => Promise<void>} rollback
 * @property {(sql: string, params?: readonly unknown[]) => Promise<unknown[][]>} query The rows as arrays.
 * @property {(sql: string, params?: readonly unknown[]) => Promise<Record<string, unknown>[]>} select The rows as objects.
 * @property {(sql: string, params?: readonly unknown[]) => Promise<Set<string> | null>} tablesOf
 *   The names of the local tables that a query reads; null when that cannot be known.
 * @property {(columns: readonly import("../contract/records.js").Column[]) => Promise<string[]>} localTypes
 * @property {(local: import("./dialect.js").Local) => Promise<boolean>} exists
 * @property {(local: import("./dialect.js").Local) => Promise<string[]>} columns The names of a table's columns.
 * @property {(local: import("./dialect.js").Local) => Promise<string[]>} makeSchema What must run before such a table is created.
 * @property {() => Promise<void>} close
 */

export {};
