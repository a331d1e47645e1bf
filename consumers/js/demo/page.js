/** The page: the tables live in the tab, and everything it shows is a query on the copy. */

import { joinTabs } from "../src/tabs.js";

const config = await (await fetch("config.json")).json();
const chosen = new URLSearchParams(location.search);
const { servers, user = "", pass = "", tables = "" } = config;
const kind = chosen.get("store") ?? "sqlite";
const name = chosen.get("name") ?? `${config.name ?? "demo"}-${kind}`;
const worker = new Worker(`worker.js?${new URLSearchParams({ servers, user, pass, tables, name, kind })}`, { type: "module" });
const replica = joinTabs(name);
Object.assign(window, { replica, worker, commits: [], failed: null });

const $ = (id) => document.getElementById(id);
const LAGS_SHOWN = 120;
const lags = [];
/** Rows of each table, as they are written. */
const counts = new Map();
/** Ends the query that is shown. */
let end = () => {};
/** The rows that it showed last, by their first column. */
let before = new Map();
const number = new Intl.NumberFormat("en");

// -- what happens

worker.onmessage = ({ data }) => {
  if (data.error) {
    window.failed = data.error;
    $("state").textContent = data.error;
    return;
  }
  const seen = data.commits.filter(({ ms }) => ms !== null).map(({ ms }) => ms);
  window.commits.push(...seen);
  if (seen.length === 0) return;
  lags.push(...seen);
  if (lags.length > LAGS_SHOWN) lags.splice(0, lags.length - LAGS_SHOWN);
  drawLags();
};

// -- the lag: from commit in PostgreSQL to the tab, one bar a transaction

function drawLags() {
  const newest = [...lags].sort((a, b) => a - b);
  const at = (part) => Math.max(0, Math.round(newest[Math.floor(newest.length * part)] ?? 0));
  $("p50").textContent = `${at(0.5)} ms`;
  $("p99").textContent = `${at(0.99)} ms`;
  const highest = Math.max(20, ...lags);
  const bars = lags.map((ms, i) => {
    const height = Math.max(1, (Math.max(0, ms) / highest) * 46);
    return `<rect x="${i * 5}" y="${48 - height}" width="3.6" height="${height}" rx="1"/>`;
  });
  $("lags").innerHTML = bars.join("");
}

replica.onStatus((status) => {
  document.body.dataset.state = status.state;
  const words = { live: status.lagMs === 0 ? "live" : "catching up", copying: "copying", connecting: "offline" };
  $("state").textContent = words[status.state] ?? status.state;
  $("reason").textContent = status.reason;
  $("position").textContent = number.format(status.position);
  $("tables").replaceChildren(...status.tables.map(({ table, state, rowsCopied, rowsExpected, reason }) => {
    const row = document.createElement("button");
    row.className = `table ${state}`;
    row.title = reason;
    const says = state === "live" ? "" : rowsCopied === null ? state : `${number.format(rowsCopied)}${rowsExpected === null ? "" : ` of about ${number.format(rowsExpected)}`} rows`;
    row.innerHTML = `<b></b><i></i><span data-count="${table}"></span>`;
    row.querySelector("b").textContent = table;
    row.querySelector("i").textContent = says;
    row.onclick = () => {
      $("sql").value = `SELECT * FROM ${table} ORDER BY 1 DESC LIMIT 12`;
      run();
    };
    return row;
  }));
  for (const { table, state } of status.tables) if (state === "live" || state === "stale") count(table);
  for (const [table, rows] of counts) for (const one of document.querySelectorAll(`[data-count="${table}"]`)) one.textContent = rows;
});

function count(table) {
  if (counts.has(table)) return;
  counts.set(table, "");
  replica.live(`SELECT count(*) AS n FROM ${table}`, [], ([{ n }]) => {
    counts.set(table, number.format(n));
    for (const one of document.querySelectorAll(`[data-count="${table}"]`)) one.textContent = counts.get(table);
  });
}

// -- the query

function run() {
  end();
  before = new Map();
  $("problem").textContent = "";
  end = replica.live($("sql").value, [], show, { onError: (error) => ($("problem").textContent = error.message) });
}

const shown = (value) =>
  value === null ? "null" : value instanceof Uint8Array ? `${value.length} bytes` : value instanceof Date ? value.toISOString() : typeof value === "object" ? JSON.stringify(value) : String(value);

function show(rows) {
  $("problem").textContent = "";
  const names = Object.keys(rows[0] ?? {});
  $("head").replaceChildren(...names.map((name) => Object.assign(document.createElement("th"), { textContent: name })));
  const now = new Map();
  const lines = rows.slice(0, 200).map((row) => {
    const key = shown(row[names[0]]);
    const line = document.createElement("tr");
    const old = before.get(key);
    if (before.size > 0 && old === undefined) line.className = "new";
    const values = names.map((name) => shown(row[name]));
    values.forEach((text, i) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      if (text === "null") cell.classList.add("null");
      if (old !== undefined && old[i] !== text) cell.classList.add("changed");
      line.append(cell);
    });
    now.set(key, values);
    return line;
  });
  before = now;
  $("rows").replaceChildren(...lines);
  $("count").textContent = `${number.format(rows.length)} ${rows.length === 1 ? "row" : "rows"}`;
}

$("sql").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.metaKey || event.ctrlKey || !event.shiftKey)) {
    event.preventDefault();
    run();
  }
});
$("run").onclick = run;

// -- the buttons

let isOffline = false;
$("offline").onclick = () => {
  isOffline = !isOffline;
  (isOffline ? replica.pause : replica.resume)();
  $("offline").classList.toggle("on", isOffline);
  $("offline").textContent = isOffline ? "Go online" : "Go offline";
};
for (const id of ["kill", "load", "verify"]) {
  $(id).hidden = !config.controls;
  $(id).onclick = async () => {
    $(id).disabled = true;
    try {
      const answer = await press(id, id === "verify" ? JSON.stringify(await held()) : "");
      $("said").textContent = answer.said;
      $("said").className = answer.ok ? "ok" : "bad";
      if (id === "load") $("load").classList.toggle("on", answer.on);
    } finally {
      $(id).disabled = false;
    }
  };
}

async function press(id, body = "") {
  return (await fetch(id, { method: "POST", body, headers: { "X-Walbridge-Demo": "1" } })).json();
}

/** The copy's rows as text, once the load is still and everything is applied. */
async function held() {
  await press("hold");
  const isCurrent = () => replica.status.state === "live" && replica.status.lagMs === 0;
  for (let still = 0; still < 5; still = isCurrent() ? still + 1 : 0) await new Promise((resolve) => setTimeout(resolve, 150));
  const found = {};
  for (const table of tables.split(",")) {
    const [one] = await replica.query(`SELECT * FROM ${table} LIMIT 1`);
    const list = Object.keys(one ?? {}).map((name) => `CAST("${name}" AS text) AS "${name}"`).join(", ");
    found[table] = one === undefined ? [] : (await replica.query(`SELECT ${list} FROM ${table}`)).map((row) => Object.values(row));
  }
  return found;
}

if (chosen.get("sql")) $("sql").value = chosen.get("sql");
run();
