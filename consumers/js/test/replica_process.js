/** A replica in a process of its own, for tests that kill it: `node replica_process.js STORE PATH [TABLE ...]`, NATS_URL. */

import { openReplica } from "../src/node.js";
import { openStore } from "./stores.js";

const [kind, path, ...tables] = process.argv.slice(2);
const failed = (error) => {
  console.error(`${error.code ?? ""} ${error.stack}`);
  process.exit(1);
};
const replica = await openReplica({
  servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222", stream: process.env.STREAM ?? "CDC", tables,
  roundsFromRows: process.env.ROUNDS_FROM === undefined ? undefined : Number(process.env.ROUNDS_FROM),
  domain: process.env.DOMAIN, makesConsumers: process.env.MAKES_CONSUMERS !== "no",
  nats: process.env.NATS_AS === undefined ? {} : { user: process.env.NATS_AS, pass: process.env.NATS_PASS },
  again: (process.env.AGAIN ?? "").split(",").filter(Boolean),
  store: await openStore(kind, path), log: (words) => console.log(words),
}).catch(failed);
replica.ready().then(() => console.log("ready"), () => {}); // a failure is told below
const seen = [];
replica.onCommit(({ commitMs }) => commitMs && seen.push(Date.now() - commitMs));
replica.onStatus(({ state }) => state === "failed" && failed(replica.error));
process.on("SIGTERM", async () => {
  seen.sort((a, b) => a - b);
  const at = (part) => Math.round(seen[Math.floor(seen.length * part)] ?? 0);
  console.log(JSON.stringify({ transactions: seen.length, p50_ms: at(0.5), p99_ms: at(0.99), rss_mb: Math.round(process.memoryUsage().rss / 1e6) }));
  await replica.close();
  process.exit(0);
});
