/** What goes wrong, by what follows: a fault that passes is retried, one that does not ends the replica. */

/** The root of this package's errors. `code` is Walbridge's, where there is one. */
export class ReplicaError extends Error {
  /** @param {string} message @param {{code?: string, fix?: string, cause?: unknown}} [more] */
  constructor(message, { code = "", fix = "", cause } = {}) {
    super(fix ? `${message}; ${fix}` : message, { cause });
    this.name = new.target.name;
    this.code = code;
  }
}

/** Passes by itself: NATS, the bridge or the store is away. The replica waits and tries again. */
export class Transient extends ReplicaError {}

/** Does not pass by itself: the replica stops and reports it. */
export class Fatal extends ReplicaError {}

/** The stream no longer holds what comes next, or is another stream: all tables are copied again. */
export class OutOfDate extends ReplicaError {}

/** A change does not fit the rows of the store: its table is copied again. */
export class ApplyConflict extends ReplicaError {
  /** @param {string} token @param {string} reason @param {boolean} [isDuplicate] */
  constructor(token, reason, isDuplicate = false) {
    super(`${token}: ${reason}`);
    this.token = token;
    this.reason = reason;
    this.isDuplicate = isDuplicate;
  }
}
