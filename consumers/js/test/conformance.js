/** Every history of consumers/conformance, in every store that is here, without a server. */

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { describe, test } from "node:test";

import { Fatal } from "../src/errors.js";
import { clock } from "../src/mirror/clock.js";
import { runSession } from "../src/mirror/session.js";
import { Lock } from "../src/mirror/tasks.js";
import { MemoryNats, MemoryTransport } from "./memory_nats.js";
import { openStore } from "./stores.js";

const FOLDER = new URL("../../conformance/histories/", import.meta.url);
const SPEED = 100;
const WITHIN_MS = 20_000;
/** After the copy is as it must be, it must stay so for as long on the replica's clock. */
const STILL_MS = 3_000;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** A consumer that can be killed and started: the store stays. */
class Consumer {
  #stop = new AbortController();
  #running = Promise.resolve();
  error = null;
  state = null;

  constructor(store, server, { stream, tables }) {
    Object.assign(this, { store, server, stream, tables, lock: new Lock() });
  }

  start() {
    this.#stop = new AbortController();
    this.#running = this.#run(this.#stop.signal);
  }

  async stop() {
    this.#stop.abort();
    await this.#running;
  }

  async #run(signal) {
    const events = { log: (words) => this.lines.push(words), began: (state) => (this.state = state) };
    for (const name of ["tableChanged", "copyAgain", "committed", "received", "caughtUp", "waiting"]) events[name] = () => {};
    while (!signal.aborted) {
      try {
        const options = { stream: this.stream, tables: this.tables, again: [], lock: this.lock, roundsFromRows: 1 };
        await runSession(this.store, new MemoryTransport(this.server), options, events, signal);
      } catch (error) {
        if (signal.aborted) return;
        this.lines.push(String(error?.stack ?? error));
        if (error instanceof Fatal || !["Transient", "Ended"].includes(error?.constructor.name)) {
          this.error = error;
          return;
        }
        await pause(2);
      }
    }
  }

  lines = [];
}

/** The text by which values are compared, as the histories' README says which spellings are equal. */
function canonical(value, type) {
  if (value === null || value === undefined) return null;
  if (type === "boolean") return String([true, 1, "t", "true", "1"].includes(typeof value === "bigint" ? Number(value) : value));
  if (/^(real|double precision)$/.test(type)) return String(Number(String(value).replace("inf", "Infinity")) + 0);
  if (/^jsonb?$/.test(type)) return sorted(typeof value === "string" ? parsed(value) : value);
  if (type === "bytea") return value instanceof Uint8Array ? Buffer.from(value).toString("base64") : String(value);
  if (value instanceof Date) value = value.toISOString();
  if (/^timestamp/.test(type)) return String(value).replace(" ", "T").replace(/Z$|\+00$/, "");
  return String(value);
}

const parsed = (text) => {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
};

function sorted(value) {
  if (Array.isArray(value)) return `[${value.map(sorted)}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  return `{${Object.keys(value).sort().map((key) => `${JSON.stringify(key)}:${sorted(value[key])}`)}}`;
}

const STATES = { waiting: "copying", stale: "copying" };

/** What differs from a step's expectation; empty when nothing does. */
async function difference(consumer, step, { published: asked, asker }) {
  const found = [];
  if (step.stopped) return consumer.error === null ? ["it goes on"] : [];
  if (consumer.error !== null) return [`it stopped: ${consumer.error.stack}`];
  for (const [token, wanted] of Object.entries(step.tables ?? {})) {
    const record = consumer.state?.tables.get(token);
    const state = record === undefined ? "none" : STATES[record.state] ?? record.state;
    if (state !== wanted.state) found.push(`${token} is ${record?.state} (${record?.reason}), not ${wanted.state}`);
    if (record === undefined) continue;
    const local = [record.localSchema, record.localName];
    const names = await consumer.lock.hold(() => consumer.store.columns(local));
    if (!wanted.columns) {
      if (names.length > 0) found.push(`${token} has columns ${names}`);
      continue;
    }
    if ([...names].sort().join() !== wanted.columns.map(([name]) => name).sort().join()) {
      found.push(`${token} has columns ${names}, not ${wanted.columns.map(([name]) => name)}`);
      continue;
    }
    const { dialect } = consumer.store;
    const isPostgres = dialect.scheme === "postgresql";
    const list = wanted.columns.map(([name, type]) => { // by its output function: the cast of inet to text is another
      const quoted = `"${name.replaceAll('"', '""')}"`;
      return isPostgres && type !== "bytea" ? `CASE WHEN ${quoted} IS NOT NULL THEN format('%s', ${quoted}) END` : quoted;
    }).join(", ");
    const rows = await consumer.lock.hold(() => consumer.store.query(`SELECT ${list} FROM ${dialect.table(local)}`));
    const write = (all) => all.map((row) => JSON.stringify(row.map((value, i) => canonical(value, wanted.columns[i][1])))).sort();
    const [mine, theirs] = [write(rows), write(wanted.rows)];
    if (mine.join() !== theirs.join()) found.push(`${token} holds ${mine}, not ${theirs}`);
  }
  const tokens = new Set(asked.map((subject) => subject.slice("snapshot.request.".length).split("@")[0]));
  const wanted = (step.asked ?? []).map((token) => token.replace("{id}", asker));
  for (const token of wanted) if (!tokens.has(token)) found.push(`it did not ask for ${token}`);
  for (const token of tokens) {
    if (!wanted.includes(token) && step.tables?.[token.split("+")[0]]?.state !== "copying") found.push(`it asked for ${token}`);
  }
  return found;
}

async function play(history, kind) {
  const server = new MemoryNats();
  const store = await openStore(kind);
  await store.claim();
  const consumer = new Consumer(store, server, history);
  const bytes = (base64) => new Uint8Array(Buffer.from(base64, "base64"));
  try {
    for (const step of history.steps) {
      if (step.step === "stream") server.createStream(step.stream, step.first_seq);
      else if (step.step === "message") {
        const subject = step.subject.replace("{id}", server.asker);
        assert.equal(server.store(step.stream, subject, step.headers, bytes(step.body)), step.seq);
      } else if (step.step === "kv") server.put(step.bucket, step.key, bytes(step.value));
      else if (step.step === "remove") server.remove(step.stream, step.seqs);
      else if (step.step === "purge") server.purge(step.stream, step.first_seq);
      else if (step.step === "cut") server.cut(step.stream, step.last_seq);
      else if (step.step === "start") consumer.start();
      else if (step.step === "stop") await consumer.stop();
      else {
        assert.equal(step.step, "expect");
        const until = performance.now() + WITHIN_MS;
        let found = await difference(consumer, step, server);
        while (found.length > 0 && performance.now() < until) {
          await pause(3);
          found = await difference(consumer, step, server);
        }
        assert.deepEqual(found, [], `${step.why}\n${consumer.lines.slice(-15).join("\n")}`);
        await pause(STILL_MS / SPEED);
        assert.deepEqual(await difference(consumer, step, server), [], `${step.why}; then it changed\n${consumer.lines.slice(-15).join("\n")}`);
        server.published.length = 0;
      }
    }
  } finally {
    await consumer.stop();
    await store.close();
  }
}

/** A test for each history in one kind of store, at most so many at a time: they mostly wait. */
export function conformance(kind, concurrency) {
  clock.speed = SPEED;
  const histories = readdirSync(FOLDER).sort().map((file) => JSON.parse(readFileSync(new URL(file, FOLDER), "utf8")));
  describe(kind, { concurrency }, () => {
    for (const history of histories) {
      test(history.name, () => play(history, kind));
    }
  });
}
