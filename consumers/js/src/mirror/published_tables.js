/**
 * Keeps the replica's tables in step with those that the bridge publishes. The stream's publication events say it exactly; they
 * are read only while a table is live, and older bridges write none, so the bridge's record is compared too.
 */

import { splitToken } from "../contract/table_token.js";
import { clock } from "./clock.js";
import { asTakenUp, asTold, localOf, newTable, wasLive } from "./state.js";

const LOOK_EVERY_MS = 5_000;

/** Add the records of tables that the replica does not have. @param {import("./replica_state.js").ReplicaState} replica @param {Iterable<string>} tokens */
export async function registerTables(replica, tokens) {
  const nameOf = (/** @type {import("../stores/dialect.js").Local} */ local) => `${local[0]}\0${local[1].toLowerCase()}`;
  const taken = new Set(Array.from(replica.tables.values(), (record) => nameOf(localOf(record))));
  for (const token of tokens) {
    if (replica.tables.has(token)) continue;
    const [schema, name] = replica.dialect.localName(...splitToken(token));
    let local = name;
    for (let number = 2; replica.dialect.scheme === "sqlite" && taken.has(nameOf([schema, local])); number++) local = `${name}_${number}`;
    taken.add(nameOf([schema, local]));
    await replica.save(newTable(token, [schema, local]));
  }
}

/** Compares the tables that are kept with those that the bridge publishes. */
export class PublishedTables {
  /** Tables that were not in the last record; null before the first. @type {Set<string> | null} */
  #lacking = null;

  /**
   * @param {import("./replica_state.js").ReplicaState} replica
   * @param {readonly string[]} chosen Empty for all.
   * @param {(token: string) => boolean} isCopying @param {AbortSignal} signal
   */
  constructor(replica, chosen, isCopying, signal) {
    this.replica = replica;
    this.chosen = chosen;
    this.isCopying = isCopying;
    this.signal = signal;
  }

  /** The kept tables' tokens. */
  get kept() {
    return this.chosen.length > 0 ? this.chosen : [...this.replica.tables.keys()];
  }

  /** Compare every few seconds, and as soon as the stream tells of a new table. @param {import("./source_stream.js").SourceStream} source */
  async watch(source) {
    for (;;) {
      const until = clock.now() + LOOK_EVERY_MS;
      while (!this.#hasNew() && clock.now() < until) {
        await this.replica.moved.wait(this.signal, Math.max(0, until - clock.now()));
      }
      const record = await source.record();
      if (record !== null) await this.compare(record);
    }
  }

  #hasNew() {
    return this.chosen.length === 0 && [...this.replica.toldOfOthers.values()].some((told) => told.version);
  }

  /** Compare with the bridge's record. A table must be missing twice in a row: the record may be a moment behind the stream. @param {import("./source_stream.js").BridgeRecord} record */
  async compare(record) {
    const { replica } = this;
    const told = new Map(replica.toldOfOthers);
    const published = new Set(record.tables);
    const missing = new Set(this.kept.filter((token) => !published.has(token)));
    for (const token of this.kept) {
      const table = replica.table(token);
      if (record.lastSeq < table.toldSeq) continue;
      if (published.has(token)) {
        if (table.state === "unpublished") await replica.change(token, asTakenUp);
      } else if (table.state === "unpublished") {
        await this.#forgetIfDropped(table);
      } else if ((this.#lacking === null || this.#lacking.has(token)) && this.#isPast(record, table)) {
        await replica.leaveUnpublished(token, "the bridge does not list it among its tables");
      }
    }
    this.#lacking = missing;
    if (this.chosen.length === 0) await this.#addNew(record, told);
    for (const [token, one] of told) if (replica.toldOfOthers.get(token) === one) replica.toldOfOthers.delete(token);
  }

  /** Whether all that the record covers was read: until then an event may come that says when it was so. @param {import("./source_stream.js").BridgeRecord} record @param {import("./state.js").TableRecord} table */
  #isPast(record, table) {
    const { checkpoint } = this.replica;
    return table.state !== "live" || (checkpoint !== null && checkpoint.cursor.streamSeq >= record.lastSeq);
  }

  /** @param {import("./source_stream.js").BridgeRecord} record @param {Map<string, import("../rules/track.js").Told>} told */
  async #addNew(record, told) {
    const { replica } = this;
    const listed = record.tables.filter((token) => (told.get(token)?.seq ?? 0) <= record.lastSeq);
    const added = [...told].filter(([, one]) => one.version && one.seq > record.lastSeq).map(([token]) => token);
    for (const token of new Set([...listed, ...added])) {
      if (replica.tables.has(token)) continue;
      await registerTables(replica, [token]);
      const one = told.get(token);
      if (one?.version) await replica.change(token, (table) => asTold(table, one)); // an older removal is void
      replica.needCopy(token);
    }
  }

  /** Forget a table of which the store has no rows, unless it was asked for by name. @param {import("./state.js").TableRecord} table */
  async #forgetIfDropped(table) {
    if (this.chosen.length > 0 || this.isCopying(table.token)) return;
    const exists = wasLive(table) && (await this.replica.lock.hold(() => this.replica.store.exists(localOf(table))));
    if (!exists) await this.replica.forgetTable(table.token);
  }
}
