// What has happened to the bridge, as entries of a list.

import { make, rebuild } from "./dom.js";
import { ago, moment } from "./format.js";
import { linkTo } from "./router.js";
import { labelOf, state } from "./state.js";

export const KINDS = {
  started: "start", streaming: "streaming", outage: "outage", stopping: "stop", paused: "pause", resumed: "resume", problem: "problem",
  solved: "problem over", publication: "publication", suspended: "suspended", gap: "gap", slot: "slot", snapshot: "snapshot",
  reader: "reader", verified: "verify",
};

function journalItem(entry, now) {
  const time = make("time", { title: ago(entry.at, now) }, moment(entry.at, now));
  const links = [];
  if (entry.table) links.push(make("a", { href: linkTo("table", entry.table) }, labelOf(entry.table)));
  if (entry.consumer && state.consumers.has(entry.consumer)) links.push(make("a", { href: linkTo("consumer", entry.consumer) }, "consumer"));
  return make("li", { className: entry.level }, time, make("span", { className: `badge ${entry.level}` }, KINDS[entry.kind] ?? entry.kind),
    make("span", { className: "words" }, entry.text), ...links);
}

// Show the newest entries that `wanted` takes, the newest first; returns how many it takes
export function listJournal(host, wanted = () => true, most = 50) {
  const chosen = state.journal.filter(wanted), list = chosen.slice(-most).reverse();
  rebuild(host, [list.map((entry) => entry.number), Math.floor(state.now / 60)], () => list.map((entry) => journalItem(entry, state.now)));
  return chosen.length;
}
