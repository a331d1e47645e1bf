/** The rules that keep a copy equal to its source, as plain functions of records. */

/** A change that names no row: only a new copy can say what the table holds. */
export class NamesNoRow extends Error {}

/** An INSERT that lacks values which the stream never had: only a new copy has them. */
export class IncompleteRow extends Error {}

/** Whether a snapshot's copy needs the event: the snapshot contains all commits below its LSN. @param {{lsn: number}} event @param {number} snapshotLsn */
export const counts = (event, snapshotLsn) => event.lsn >= snapshotLsn;

/**
 * Whether a copy is out of date where the stream says how its table is published: an unknown version is another one, and so is
 * every version of a table that is not published any more (empty).
 * @param {string} version @param {string} published
 */
export const isOtherVersion = (version, published) => !version || version !== published;

/** The row that a change is about; `whole`: any one of the rows that are equal in all columns. @typedef {{columns: string[], row: import("../contract/records.js").Row, whole: boolean}} Identity */

/**
 * Find the row by its primary key if the change contains it, else by the replica identity. Throws NamesNoRow.
 * @param {import("../contract/records.js").Change} change @param {readonly string[]} pk @param {number} columnCount
 * @returns {Identity}
 */
export function identityOf(change, pk, columnCount) {
  const before = change.kind === "delete" || change.old === null ? change.row : change.old;
  const key = change.key;
  if (pk.length > 0 && pk.every((name) => key.includes(name))) {
    if (!pk.every((name) => Object.hasOwn(before, name))) {
      throw new NamesNoRow(`a change of ${change.schema}.${change.table} lacks values of its key`);
    }
    return { columns: [...pk], row: before, whole: false };
  }
  const known = key.filter((name) => Object.hasOwn(before, name) && !change.omitted.includes(name));
  if (known.length === 0) {
    throw new NamesNoRow(
      `a change names no row: ${change.schema}.${change.table} has neither a key nor REPLICA IDENTITY FULL`,
    );
  }
  return { columns: known, row: before, whole: key.length >= columnCount };
}

/**
 * The columns that a change writes: an omitted one becomes null, an unchanged one is absent. Throws IncompleteRow for an INSERT
 * that has unchanged columns: there is nothing to keep, and null would be a wrong value.
 * @param {import("../contract/records.js").Change} change @returns {import("../contract/records.js").Row}
 */
export function writtenColumns(change) {
  if (change.kind === "insert" && change.unchanged.length > 0) {
    throw new IncompleteRow(
      `an UPDATE moved a row into the row filter of ${change.schema}.${change.table}, and PostgreSQL did not send` +
        ` ${change.unchanged.join(", ")}; REPLICA IDENTITY FULL prevents it`,
    );
  }
  if (change.omitted.length === 0) return change.row;
  return { ...change.row, ...Object.fromEntries(change.omitted.map((name) => [name, null])) };
}

/**
 * Whether rows of shape `held` become rows of shape `announced` without the source: only if columns were dropped. No event has
 * the old rows' values of a new column, and a column that moved is another column under the same name.
 * @param {readonly import("../contract/records.js").Column[]} held
 * @param {readonly import("../contract/records.js").Column[]} announced
 */
export function isCertain(held, announced) {
  const kept = new Set(announced.map((column) => column.name));
  const same = held.filter((column) => kept.has(column.name));
  return (
    same.length === announced.length &&
    same.every((column, i) => column.name === announced[i].name && column.type === announced[i].type) &&
    held.every((column) => kept.has(column.name) || !column.pk)
  );
}
