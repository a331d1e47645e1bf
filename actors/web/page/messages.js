// The view of messages: the newest, those of a table or a row, or from a place in the stream on.

import { ask, lacksToken, whyNoRows } from "./access.js";
import { $, put } from "./dom.js";
import { whole } from "./format.js";
import { addMessages, followMessages } from "./message_list.js";
import { linkTo } from "./router.js";
import { offerTables, tokenOf } from "./snapshots.js";
import { labelOf, state } from "./state.js";

let question = {}, isWanted = false, more = null, asked = 0;

// One answer to a question; null without a token. Also the table's view asks here.
export function askMessages(words) {
  const query = new URLSearchParams(Object.entries(words).filter(([, value]) => value));
  return ask("GET", `messages?${query}`);
}

function say(words) {
  put($("messages-state"), words);
  $("messages-state").hidden = !words;
}

async function load(further) {
  const number = (asked += 1), { table, key, from } = question;
  isWanted = false;
  $("messages-more").disabled = true;
  if (!further) say("Reading …");
  try {
    const found = await askMessages({ table, key, from, ...(further ? { from: "", ...more } : {}) });
    if (number !== asked) return;  // somebody has asked anew meanwhile
    if (!found) return say("The bridge's token is needed to see rows.");
    addMessages($("messages-list"), found.messages, { fresh: !further, open: Boolean(from) && !further && found.messages.length > 0 });
    more = found.more;
    show(found);
  } catch (error) {
    if (number !== asked) return;
    if (!further) $("messages-list").replaceChildren();
    $("messages-more").hidden = true;
    say(`${error.message}`);
  }
}

function show({ first_seq, last_seq, messages }) {
  const count = $("messages-list").childElementCount;
  put($("messages-count"), whole.format(count));
  const place = more?.before ?? more?.from;
  $("messages-more").hidden = !more;
  $("messages-more").disabled = false;
  put($("messages-more"), messages.length ? (more?.from ? "Newer messages" : "Older messages") : `Search on from message ${whole.format(place ?? 0)}`);
  if (count) say("");
  else if (more) say(`Nothing found down to message ${whole.format(place)} of ${whole.format(first_seq)} to ${whole.format(last_seq)}.`);
  else say(last_seq >= first_seq && last_seq ? "No such message is in the stream." : "The stream holds no messages yet.");
}

$("messages-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const named = $("messages-table").value.trim();
  const link = linkTo("messages", "", { table: named && tokenOf(named), key: $("messages-key").value.trim(), from: $("messages-from").value.trim() });
  if (location.hash === link) load(false);
  else location.hash = link;
});
$("messages-table").addEventListener("focus", offerTables);
$("messages-more").addEventListener("click", () => load(true));

export const messages = {
  element: "view-messages",
  title: () => "Messages",
  show(_, query) {
    question = Object.fromEntries(["table", "key", "from"].map((name) => [name, query.get(name) ?? ""]));
    $("messages-table").value = question.table && labelOf(question.table);
    $("messages-key").value = question.key;
    $("messages-from").value = question.from;
    $("messages-list").replaceChildren();
    put($("messages-count"), "");
    $("messages-more").hidden = true;
    isWanted = true;
  },
  update() {
    if (!state.status) return;
    const why = whyNoRows();
    $("messages-form").querySelector("button").disabled = Boolean(why);
    if (why) return say(why);
    if (isWanted && lacksToken()) return say("The bridge's token is needed to see rows: press Show.");
    if (isWanted) load(false);
    followMessages($("messages-list"));
  },
  hide() {
    asked += 1;  // an answer that comes now is nobody's
    $("messages-list").replaceChildren();
  },
};
