/** One session of a replica: from an open connection to NATS and an open store to the first error of either. */

import { findToken } from "../contract/table_token.js";
import { Fatal } from "../errors.js";
import { NEEDED_NOTHING } from "../rules/track.js";
import { Copier } from "./copying.js";
import { Follower } from "./following.js";
import { Holds } from "./holds.js";
import { PublishedTables, registerTables } from "./published_tables.js";
import { ReplicaState } from "./replica_state.js";
import { SourceStream } from "./source_stream.js";
import { asStale, savedChoice } from "./state.js";
import { sleep, Tasks } from "./tasks.js";

const BRIDGE_EVERY_MS = 1_000;

/**
 * What a session tells while it runs.
 * @typedef {object} Events
 * @property {(words: string) => void} log
 * @property {(record: import("./state.js").TableRecord) => void} tableChanged Its record, or the progress of its copy.
 * @property {(token: string, reason: string, cause: string) => void} copyAgain A live table must be copied again.
 * @property {(change: {tokens: string[], commitUs: number}) => void} committed A local transaction changed these tables.
 * @property {(message: import("./source_stream.js").Message) => void} received
 * @property {() => void} caughtUp Everything in the stream is applied.
 * @property {(reason: string) => void} waiting
 * @property {(state: ReplicaState) => void} began
 */

/**
 * Follow the tables until an error, or until the signal says to stop (then Ended).
 * @param {import("../stores/store.js").Store} store @param {import("./source_stream.js").Transport} transport
 * @param {{stream: string, tables: readonly string[], again: string[], lock: import("./tasks.js").Lock, zstdUrl?: string, roundsFromRows: number}} options
 * `tables`: names or tokens, none for all. `again`: tables to copy again first; emptied.
 * `lock`: held while a local transaction is open. `roundsFromRows`: tables with so many rows are copied in rounds; 0 for none.
 * @param {Events} events @param {AbortSignal} stop
 */
export async function runSession(store, transport, { stream, tables, again, lock, zstdUrl, roundsFromRows }, events, stop) {
  const source = new SourceStream(transport, stream, { log: events.log, zstdUrl });
  const replica = new ReplicaState(store, stream, events, lock);
  replica.roundsFromRows = roundsFromRows;
  await replica.load();
  if (replica.checkpoint !== null && replica.checkpoint.stream !== stream) {
    throw new Fatal(`the store has a copy of stream ${replica.checkpoint.stream}, not of ${stream}`, {
      code: "WB506", fix: "name that stream, or another store",
    });
  }
  if (replica.checkpoint === null && replica.shapes.size > 0) await replica.forget("the replica's place in the stream is lost");
  events.began(replica);
  const record = await waitForBridge(source, events, replica.tables.size > 0, stop);
  const chosen = chooseTables(tables, record.tables, [...replica.tables.keys()]);
  const tasks = new Tasks();
  const end = () => tasks.end(new Error("stopped"));
  stop.addEventListener("abort", end, { once: true });
  try {
    await replica.run([savedChoice(replica.dialect, chosen.length === 0)]);
    await registerTables(replica, chosen.length > 0 ? chosen : record.tables);
    for (const table of [...replica.tables.values()]) {
      const isKept = chosen.length === 0 || chosen.includes(table.token);
      const reason = !isKept ? "it was not copied for a while" : again.includes(table.token) ? "asked for" : "";
      if (table.state === "live" && reason) {
        await replica.save(asStale(table, reason, NEEDED_NOTHING));
        replica.shapes.delete(table.token);
      }
    }
    again.length = 0;
    const holds = new Holds(replica, tasks.signal);
    const everything = chosen.length === 0 || record.tables.every((token) => chosen.includes(token));
    const follower = new Follower(replica, source, holds, everything, tasks.signal);
    const copier = new Copier(replica, source, follower);
    const published = new PublishedTables(replica, chosen, (token) => copier.isCopying(token), tasks.signal);
    await published.compare(record);
    replica.needCopy = (token) => {
      if (published.kept.includes(token)) tasks.start(() => copier.copy(token));
    };
    tasks.start(() => follower.run());
    tasks.start(() => holds.watch());
    tasks.start(() => published.watch(source));
    for (const token of published.kept) {
      if (!["live", "unpublished"].includes(replica.table(token).state)) replica.needCopy(token);
    }
    if (stop.aborted) end();
    await tasks.done();
  } finally {
    stop.removeEventListener("abort", end);
  }
}

/** Wait until a bridge has created the stream and recorded its tables. @param {SourceStream} source @param {Events} events @param {boolean} hasTables @param {AbortSignal} signal */
async function waitForBridge(source, events, hasTables, signal) {
  for (;;) {
    const record = (await source.look()) ? await source.record() : null;
    if (record !== null && (record.tables.length > 0 || hasTables)) return record;
    events.waiting(`waiting for a bridge of stream ${source.name}`);
    await sleep(BRIDGE_EVERY_MS, signal);
  }
}

/** @param {readonly string[]} wanted @param {readonly string[]} published @param {readonly string[]} known */
function chooseTables(wanted, published, known) {
  return [...new Set(wanted.map((name) => {
    const token = findToken(name, published) ?? findToken(name, known);
    if (token === undefined) {
      throw new Fatal(`${JSON.stringify(name)} is no table that the bridge publishes; there is ${published.join(", ")}`, { code: "WB507" });
    }
    return token;
  }))];
}
