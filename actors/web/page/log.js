// The view of everything that has happened since the bridge started.

import { $, make, put } from "./dom.js";
import { whole } from "./format.js";
import { KINDS, listJournal } from "./journal.js";
import { state } from "./state.js";

const ROWS = 100;
let limit = ROWS;

$("log-kind").append(make("option", { value: "" }, "everything"),
  ...Object.entries(KINDS).map(([value, words]) => make("option", { value }, words)));

function update() {
  const kind = $("log-kind").value, word = $("log-search").value.trim().toLowerCase();
  const takes = (entry) => (!kind || entry.kind === kind) && (!word || entry.text.toLowerCase().includes(word));
  const count = listJournal($("log-list"), takes, limit);
  put($("log-count"), whole.format(count));
  $("log-none").hidden = count > 0;
  put($("log-none"), state.journal.length ? "Nothing of this kind." : "Nothing yet.");
  $("log-more").hidden = count <= limit;
}

$("log-kind").addEventListener("change", update);
$("log-search").addEventListener("input", update);
$("log-more").addEventListener("click", () => {
  limit += ROWS;
  update();
});

export const log = { element: "view-log", title: () => "Log", update };
