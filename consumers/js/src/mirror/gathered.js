/** A gathered snapshot, the staging table that holds it, and why one could not be gathered. */

import { splitSuffix } from "../contract/subjects.js";
import { NEEDED_AS_BEFORE } from "../rules/track.js";
import { localOf } from "./state.js";

/** A snapshot does not lead to the live tables' checkpoint: another one is needed. */
export class SnapshotUnusable extends Error {
  /** @param {string} reason @param {{neededSeq?: number, initSeq?: number, told?: import("../rules/track.js").Told}} [more] `initSeq`: of a start that must not be read again. */
  constructor(reason, { neededSeq = NEEDED_AS_BEFORE, initSeq = 0, told } = {}) {
    super(reason);
    this.neededSeq = neededSeq;
    this.initSeq = initSeq;
    this.told = told;
  }
}

/** The bridge could not take the snapshot. */
export class SnapshotRefused extends Error {}
/** The bridge does not publish the table any more. */
export class NotPublished extends Error {}
/** The store cannot hold this table at all. */
export class CannotCopy extends Error {}

/**
 * A complete snapshot in its staging table; `created` is the stream's.
 * @typedef {{start: import("../contract/records.js").SnapshotStart, created: string, initSeq: number, staging: import("../stores/shapes.js").TableShape, rows: number}} Gathered
 * @typedef {import("../contract/records.js").SnapshotStart | import("../contract/records.js").RangesStart} Start
 */

/** Throw NotPublished when any task has found that the table is no longer published. @param {import("./replica_state.js").ReplicaState} replica @param {string} token */
export function checkPublished(replica, token) {
  if (replica.table(token).state === "unpublished") throw new NotPublished(token);
}

/** Create the staging table, empty. Throws CannotCopy. @param {import("./replica_state.js").ReplicaState} replica @param {Start} start @returns {Promise<import("../stores/shapes.js").TableShape>} */
export async function makeStaging(replica, start) {
  const { dialect, store } = replica;
  const [token] = splitSuffix(start.token);
  const record = replica.table(token);
  const obstacle = dialect.obstacle(start.columns.map(({ name }) => name));
  if (obstacle) throw new CannotCopy(obstacle);
  if (record.state === "waiting" && (await replica.lock.hold(() => store.exists(localOf(record))))) {
    throw new CannotCopy(`there is a table ${dialect.table(localOf(record))} already, which is not this mirror's: drop or rename it`);
  }
  const shape = await stagingShape(replica, start);
  const before = await replica.lock.hold(() => store.makeSchema(shape.local));
  const statements = [...before, dialect.dropTable(shape.local), dialect.createTable(shape)];
  await replica.run(statements.map((sql) => ({ sql, params: [[]], token })));
  return shape;
}

/** The shape of the staging table. @param {import("./replica_state.js").ReplicaState} replica @param {Start} start @returns {Promise<import("../stores/shapes.js").TableShape>} */
export async function stagingShape(replica, start) {
  const { dialect, store } = replica;
  const [token] = splitSuffix(start.token);
  const record = replica.table(token);
  return {
    token, schema: start.schema, table: start.table, local: dialect.stagingName(localOf(record), token), columns: start.columns,
    localTypes: await replica.lock.hold(() => store.localTypes(start.columns)), relationId: start.relationId,
    keyed: record.keyed === 1,
  };
}

/** Say how many rows of a table's copy are there, of about how many; null where that is not known. @param {import("./replica_state.js").ReplicaState} replica @param {string} token @param {number} rows @param {number | null} [expected] */
export function tellProgress(replica, token, rows, expected = null) {
  replica.gathered.set(token, { rows, expected });
  replica.events.tableChanged(replica.table(token));
}
