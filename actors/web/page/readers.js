// What is known of a consumer: its kind, how far it is, what verify has found.

import { whole } from "./format.js";

export const kindOf = (one) => {
  if (one.note.kind === "mirror") return `mirror ${one.note.replica}`.trim();
  if (one.note.kind) return `walbridge ${one.note.kind}`;
  return one.acknowledges ? "consumer" : "ordered consumer";
};

// NATS patterns: * is one token, > is the rest
function matches(pattern, subject) {
  const wanted = pattern.split("."), given = subject.split(".");
  for (let i = 0; i < wanted.length; i += 1) {
    if (wanted[i] === ">") return given.length > i;
    if (i >= given.length || (wanted[i] !== "*" && wanted[i] !== given[i])) return false;
  }
  return wanted.length === given.length;
}

export const reads = (one, subject) => !one.filters.length || one.filters.some((pattern) => matches(pattern, subject));
export const readsTable = (one, token) => reads(one, `cdc.${token}.insert`) || reads(one, `cdc.${token}.update`) || reads(one, `cdc.${token}.delete`);

// Where a consumer is with a message: words, and whether it is through with it
export function placeAt(one, message) {
  if (!reads(one, message.subject)) return null;
  const { applied_seq } = one.note;
  if (applied_seq !== null) {
    if (applied_seq >= message.seq) return { is_done: true, words: "applied" };
    return { is_done: false, words: one.delivered_seq >= message.seq ? "delivered, not yet reported as applied" : `not yet: ${whole.format(message.seq - one.delivered_seq)} messages before it` };
  }
  if (one.acknowledges && one.acknowledged_seq >= message.seq) return { is_done: true, words: "acknowledged" };
  if (one.delivered_seq >= message.seq) return { is_done: !one.acknowledges, words: one.acknowledges ? "delivered, not yet acknowledged" : "delivered" };
  return { is_done: false, words: "not yet delivered" };
}
