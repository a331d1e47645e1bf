/**
 * Holds the replica still while a verification compares it with its source at one LSN, as `walbridge verify` asks for it.
 *
 * A verification inserts a row: `asked`. The replica answers `held` and applies nothing more. The verification then takes an LSN
 * in the source and writes it into the row. The replica continues up to that LSN, answers `reached`, and stays until the row is
 * deleted or shows no sign of life.
 */

import { clock } from "./clock.js";
import { News, sleep } from "./tasks.js";

const LOOK_EVERY_MS = 250;
const SILENCE_MS = 15_000;

/** A verification's row; lsn 0 until it has taken one. @typedef {{id: string, lsn: number}} Hold */

/** The verifications that ask this replica to hold still, one at a time. */
export class Holds {
  /** @type {Hold | null} */
  wanted = null;
  #changed = new News();
  #alive = { id: "", sign: -1, at: 0 };

  /** @param {import("./replica_state.js").ReplicaState} replica @param {AbortSignal} signal */
  constructor(replica, signal) {
    this.replica = replica;
    this.signal = signal;
  }

  /** Look for rows until the session ends. */
  async watch() {
    const { dialect } = this.replica;
    const own = dialect.own("verify");
    for (;;) {
      const rows = await this.replica.query(`SELECT id, lsn, alive FROM ${own} ORDER BY id`);
      const row = rows.find(([id]) => id === this.wanted?.id) ?? rows[0]; // the one that is served comes first
      /** @type {Hold | null} */
      let wanted = null;
      if (row !== undefined) {
        const [id, lsn, sign] = [String(row[0]), Number(row[1]), Number(row[2])];
        const now = clock.now();
        if (id !== this.#alive.id || sign !== this.#alive.sign) this.#alive = { id, sign, at: now };
        if (now - this.#alive.at > SILENCE_MS) {
          await this.replica.run([{ sql: `DELETE FROM ${own} WHERE id = ${dialect.parameter(1)}`, params: [[id]] }]);
        } else {
          wanted = { id, lsn };
        }
      }
      if (wanted?.id !== this.wanted?.id || wanted?.lsn !== this.wanted?.lsn) {
        this.wanted = wanted;
        this.#changed.ring();
      }
      await sleep(LOOK_EVERY_MS, this.signal);
    }
  }

  /** Answer with `state`, and return when the verification wants something else. @param {Hold} hold @param {string} state */
  async stay(hold, state) {
    const { dialect } = this.replica;
    const sql = `UPDATE ${dialect.own("verify")} SET state = ${dialect.parameter(1)} WHERE id = ${dialect.parameter(2)}`;
    await this.replica.run([{ sql, params: [[state, hold.id]] }]);
    await this.#changed.until(this.signal, () => this.wanted !== hold);
  }
}
