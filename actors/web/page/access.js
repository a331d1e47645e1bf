// Requests that may need the token: it stays in this tab, and only in requests that need it.

import { $, put } from "./dom.js";
import { state } from "./state.js";

const TOKEN_KEY = "walbridge-token";

export function askForToken(words) {
  return new Promise((resolve) => {
    const dialog = $("token-dialog");
    if (words) put($("token-words"), words);
    $("token-input").value = "";
    const done = (given) => {
      $("token-form").onsubmit = $("token-cancel").onclick = dialog.onclose = null;
      dialog.close();
      resolve(given);
    };
    $("token-form").onsubmit = (event) => {
      event.preventDefault();
      const given = $("token-input").value.trim();
      if (given) sessionStorage.setItem(TOKEN_KEY, given);
      else sessionStorage.removeItem(TOKEN_KEY);
      done(Boolean(given));
    };
    $("token-cancel").onclick = () => done(false);
    dialog.onclose = () => done(false);
    dialog.showModal();
    $("token-input").focus();
  });
}

// Whether a request would have to ask for the token first
export const lacksToken = () => state.posts === "token" && !sessionStorage.getItem(TOKEN_KEY);

// Why rows cannot be shown now; empty when they can
export function whyNoRows() {
  if (state.reads === "off") return "BRIDGE_HTTP_MESSAGES is no: rows are not shown here.";
  if (state.reads === "closed") return "Set BRIDGE_HTTP_TOKEN to see rows beyond loopback.";
  return "";
}

// The answer as JSON; null when the person gave no token. Throws an Error with the bridge's words.
export async function ask(method, path) {
  if (lacksToken() && !(await askForToken())) return null;
  for (;;) {
    const token = sessionStorage.getItem(TOKEN_KEY);
    const reply = await fetch(path, { method, headers: token ? { Authorization: `Bearer ${token}` } : {} });
    const said = await reply.json().catch(() => ({}));
    if (reply.status === 401) {
      sessionStorage.removeItem(TOKEN_KEY);
      if (!(await askForToken("The bridge rejected this token. Enter it again, as in BRIDGE_HTTP_TOKEN."))) return null;
    } else if (!reply.ok) throw new Error(said.error || `${reply.status} ${reply.statusText}`);
    else return said;
  }
}
