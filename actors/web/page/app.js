// The page of a bridge: takes what it sends once per second, and shows the view that the address names.

import { ask, askForToken } from "./access.js";
import { $, forgetBuilt, make, put, rebuild, toast } from "./dom.js";
import { consumer } from "./consumer.js";
import { clock } from "./format.js";
import { log } from "./log.js";
import { messages } from "./messages.js";
import { overview } from "./overview.js";
import { startPreferences } from "./preferences.js";
import { addView, shownView, startRouting } from "./router.js";
import { clockNow, state, take } from "./state.js";
import { table } from "./table.js";

const RETRY_MS = 3000, SILENT_MS = 6000;
let lastFrameAt = 0, isLost = false, isStopping = false, isEnding = false;

addView("", overview);
addView("messages", messages);
addView("table", table);
addView("consumer", consumer);
addView("log", log);

function showHead(status) {
  $("verdict").className = `verdict ${status.verdict.level}`;
  put($("verdict-text"), status.verdict.text);
  const { source, nats, slot, publication, stream } = status;
  rebuild($("identity"), [source, nats, slot, publication, stream], () => [
    make("span", {}, source ? make("b", {}, source) : "PostgreSQL", `, slot ${slot}, publication ${publication}`), " → ",
    make("span", {}, nats ? make("b", {}, nats) : "NATS", `, stream ${stream}`)]);
  showTitle();
  put($("version"), `Walbridge ${status.version}`);
  put($("pause-button"), status.paused ? "Resume" : "Pause");
  for (const id of ["pause-button", "stop-button"]) {
    $(id).disabled = state.posts === "closed" || isStopping || status.state === "draining";
    $(id).title = state.posts === "closed" ? "Set BRIDGE_HTTP_TOKEN to allow this beyond loopback" : "";
  }
  $("token-button").hidden = state.posts !== "token";
}

function showTitle() {
  const { status } = state, view = shownView()?.title?.(), hasStopped = isStopping || isEnding;
  const sign = isLost ? (hasStopped ? "!" : "✗") : { ok: "✓", warn: "!", bad: "✗" }[status?.verdict.level] ?? "…";
  const words = isLost ? (hasStopped ? "stopped" : "no answer") : status?.stream;
  document.title = `${sign} ${[words, view, "Walbridge"].filter(Boolean).join(" – ")}`;
}

function setLive(on, text) {
  $("live").className = `live ${on ? "on" : "off"}`;
  put($("live-text"), text);
  document.documentElement.classList.toggle("stale", !on);
}

function lose() {
  if (!lastFrameAt && !isLost) setLive(false, "no answer");
  isLost = true;
  const since = lastFrameAt ? ` This page shows its state at ${clock(clockNow() - (Date.now() - lastFrameAt) / 1000, true)}.` : "";
  const hasStopped = isStopping || isEnding;  // an orderly stop is told before the connection ends
  $("verdict").className = `verdict ${hasStopped ? "warn" : "bad"}`;
  put($("verdict-text"), hasStopped ? `The bridge has stopped.${since}` : `No answer from the bridge.${since} Retrying every few seconds.`);
  showTitle();
  setLive(false, hasStopped ? "stopped" : "no answer");
}

function connect() {
  const source = new EventSource("events");
  source.onmessage = (event) => {
    lastFrameAt = Date.now();
    isLost = false;
    const frame = JSON.parse(event.data);
    if (isStopping && frame.whole) isStopping = false;  // a bridge is running again
    isEnding = !frame.status.paused && ["draining", "halted"].includes(frame.status.state);
    take(frame);
    showHead(frame.status);
    shownView().update?.();
    setLive(true, "live");
  };
  source.onerror = () => {
    source.close();
    lose();
    setTimeout(connect, RETRY_MS);
  };
}

$("token-button").addEventListener("click", () => askForToken());
$("pause-button").addEventListener("click", async () => {
  const isPaused = Boolean(state.status?.paused);
  try {
    if (await ask("POST", isPaused ? "resume" : "pause")) {
      toast(isPaused ? "Resuming" : "Pausing: the bridge first stores and confirms what it has read, then releases its slot");
    }
  } catch (error) {
    toast(`Bridge not ${isPaused ? "resumed" : "paused"}: ${error.message}`);
  }
});
$("stop-button").addEventListener("click", () => $("stop-dialog").showModal());
$("stop-cancel").addEventListener("click", () => $("stop-dialog").close());
$("stop-confirm").addEventListener("click", async () => {
  $("stop-dialog").close();
  try {
    if (await ask("POST", "shutdown")) {
      isStopping = true;
      $("stop-button").disabled = true;
      toast("Stopping: the bridge first stores and confirms what it has read");
    }
  } catch (error) {
    toast(`Bridge not stopped: ${error.message}`);
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.matches("input, select") || document.querySelector("dialog[open]")) return;
  const search = document.querySelector(".view:not([hidden]) [data-search]");
  if (!search) return;
  event.preventDefault();
  search.focus();
});
// a frozen peer closes no connection
setInterval(() => {
  if (lastFrameAt && !isLost && Date.now() - lastFrameAt > SILENT_MS) lose();
}, 2000);

startPreferences(() => {
  forgetBuilt();
  shownView()?.update?.();
});
startRouting(showTitle);
connect();
