// The pipeline: actors, and the channels between them.

import { $, make, put } from "./dom.js";
import { ago, bytes, count, milliseconds, seen, short } from "./format.js";
import { state } from "./state.js";

const FLOW = [
  { id: "postgres", name: "PostgreSQL", outer: true },
  { wire: "replication" },
  { id: "received", name: "Reader" },
  { channel: "blocks" },
  { id: "decoded", name: "Decoder" },
  { channel: "items" },
  { id: "batcher", name: "Batcher" },
  { channel: "batches" },
  { id: "published", name: "Publisher" },
  { wire: "in flight" },
  { id: "durable", name: "JetStream", outer: true },
  { wire: "acknowledged" },
  { id: "confirmed", name: "Confirmed" },
];
const parts = {};
for (const part of FLOW) {
  if (part.id) {
    const lsn = make("div", { className: "lsn" }), rate = make("div", { className: "rate" }), age = make("div", { className: "age" });
    const node = make("li", { className: `stage${part.outer ? " outer" : ""}` },
      make("h3", {}, make("span", { className: "dot" }), part.name), lsn, rate, age);
    parts[part.id] = { node, lsn, rate, age };
    $("flow").append(node);
  } else {
    const label = make("span", { className: "label" }), fill = make("i");
    const meter = part.channel ? make("div", { className: "meter" }, fill) : make("div");
    const node = make("li", { className: "link" }, make("div", { className: "wire" }), meter, label);
    parts[part.channel ?? part.wire] = { node, label, fill };
    $("flow").append(node);
  }
}
let blockedBefore = {};

const movedWords = (moved, now) => (!moved ? "not moved yet" : now - moved < 2 ? "moving" : `moved ${ago(moved, now)}`);

export function showFlow(status, now) {
  const { point } = state;
  if (state.isFresh) blockedBefore = {};
  const stages = Object.fromEntries(status.stages.map((stage) => [stage.stage, stage]));
  const rate = point ? point[1] + point[2] + point[3] + point[4] : 0;
  const figures = {
    received: point ? `${bytes(point[11])}/s` : "",
    decoded: `${count(status.last_processing_time_us)} µs/msg`,
    published: point ? `${bytes(point[12])}/s` : "",
    durable: `${short(rate)}/s`,
    confirmed: `${bytes(status.wal.unconfirmed_bytes)} behind`,
  };
  for (const [id, text] of Object.entries(figures)) {
    const stage = stages[id], part = parts[id];
    put(part.lsn, stage.lsn);
    put(part.rate, text);
    put(part.age, stage.stuck ? `stuck, ${movedWords(stage.moved_at, now)}` : movedWords(stage.moved_at, now));
    part.node.classList.toggle("stuck", stage.stuck);
    part.node.classList.toggle("moving", !stage.stuck && now - stage.moved_at < 10);
  }
  const source = parts.postgres, waiting = status.state === "waiting_postgres";
  put(source.lsn, status.wal.current_lsn);
  put(source.rate, waiting ? "not connected" : status.slot_active ? "slot active" : "slot inactive");
  put(source.age, `${waiting ? "held" : "holds"} ${bytes(status.wal.held_bytes)}${seen(status.wal.looked_at, now)}`);
  source.node.classList.toggle("stuck", waiting);
  source.node.classList.toggle("moving", status.slot_active && !waiting);
  const batcher = parts.batcher;
  put(batcher.lsn, `${count(status.transactions)} tx`);
  put(batcher.rate, status.publish ? `mode ${status.publish}` : "");
  put(batcher.age, "");
  batcher.node.classList.toggle("moving", status.state === "streaming");
  for (const [name, channel] of Object.entries(status.channels)) showChannel(name, channel);
  put(parts.replication.label, "");
  put(parts["in flight"].label, `${count(status.in_flight_messages)} in flight`);
  put(parts.acknowledged.label, point && point[7] !== null ? `ack ${milliseconds(point[7])}` : "");
  const flowing = status.state === "streaming" && rate > 0;
  for (const part of Object.values(parts)) if (part.node.classList.contains("link")) part.node.classList.toggle("flowing", flowing);
}

function showChannel(name, channel) {
  const part = parts[name];
  if (!part?.fill) return;
  const blocked = Math.max(0, channel.blocked_seconds - (blockedBefore[name] ?? channel.blocked_seconds));
  blockedBefore[name] = channel.blocked_seconds;
  const share = Math.max(channel.items / channel.capacity, Math.min(1, blocked));
  part.fill.style.width = `${Math.round(share * 100)}%`;
  part.node.classList.toggle("full", share > 0.8);
  put(part.label, share > 0.8 ? "full" : `${channel.items} of ${channel.capacity}`);
  part.node.title = `channel ${name}: ${channel.items} of ${channel.capacity} items waiting; the sender has waited ${channel.blocked_seconds.toFixed(1)} s for room since the pipeline started`;
}
