// Shows what the bridge sends once per second. Text from a server always stays text: nothing here turns it into markup.

const $ = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en");
const OPERATIONS = ["insert", "update", "delete", "truncate"];
const ROWS = 25;
const TOKEN_KEY = "walbridge-token";

function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function count(n) {
  return n < 10 && n % 1 ? n.toFixed(1) : whole.format(Math.round(n));
}

function short(n) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (n >= size) return `${+(n / (unit === "k" ? 1e3 : size)).toFixed(1)}${unit}`;
  }
  return count(n);
}

function bytes(n) {
  let unit = 0;
  for (; n >= 1024 && unit < 4; unit += 1) n /= 1024;
  return `${n >= 10 || n % 1 === 0 ? Math.round(n) : n.toFixed(1)} ${["B", "kB", "MB", "GB", "TB"][unit]}`;
}

function duration(s) {
  if (s < 1) return `${Math.max(0, Math.round(s * 1000))} ms`;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} d`;
}

const milliseconds = (ms) => (ms === null ? "–" : ms >= 1000 ? `${+(ms / 1000).toFixed(2)} s` : `${+ms.toFixed(ms < 10 ? 1 : 0)} ms`);
const ago = (then, now) => (!then ? "never" : now - then < 2 ? "now" : `${duration(now - then)} ago`);

// ---- the plots

const board = new Board();
for (const chart of [
  {
    title: "Changes stored/s", stacked: true, format: short,
    series: ["insert", "update", "delete", "other"].map((name, i) => ({ name, color: name, value: (p) => p[1 + i] })),
  },
  {
    title: "From commit to stored", format: milliseconds, least: 5,
    series: [{ name: "p50", color: "p50", value: (p) => p[5] }, { name: "p99", color: "p99", value: (p) => p[6] }],
  },
  { title: "Lag: age of the oldest unstored change", format: duration, series: [{ name: "lag", color: "lag", value: (p) => p[8] }] },
  {
    title: "WAL held in PostgreSQL", format: bytes, bytes: true, least: 1048576,
    series: [{ name: "held", color: "wal", value: (p) => p[9] }],
  },
]) {
  board.charts.push(new Chart($("charts"), { ...chart, board }));
}
$("ranges").addEventListener("click", (event) => {
  const chosen = event.target.closest("button");
  if (!chosen) return;
  for (const button of $("ranges").children) button.setAttribute("aria-pressed", String(button === chosen));
  board.seconds = Number(chosen.dataset.seconds);
  board.refresh();
});
document.addEventListener("visibilitychange", () => board.refresh());

// ---- the pipeline: actors and the channels between them

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

function showFlow(status, point, now) {
  const stages = Object.fromEntries(status.stages.map((stage) => [stage.stage, stage]));
  const rate = point ? point[1] + point[2] + point[3] + point[4] : 0;
  const figures = {
    received: point ? `${bytes(point[11])}/s` : "",
    decoded: `${count(status.last_processing_time_us)} µs/message`,
    published: point ? `${bytes(point[12])}/s` : "",
    durable: `${short(rate)}/s`,
    confirmed: `${bytes(status.wal.unconfirmed_bytes)} behind`,
  };
  for (const [id, text] of Object.entries(figures)) {
    const stage = stages[id], part = parts[id];
    put(part.lsn, stage.lsn);
    put(part.rate, text);
    put(part.age, stage.stuck ? `stuck, moved ${ago(stage.moved_at, now)}` : `moved ${ago(stage.moved_at, now)}`);
    part.node.classList.toggle("stuck", stage.stuck);
    part.node.classList.toggle("moving", !stage.stuck && now - stage.moved_at < 10);
  }
  const source = parts.postgres, waiting = status.state === "waiting_postgres";
  put(source.lsn, status.wal.current_lsn);
  put(source.rate, status.slot_active ? "slot active" : "slot inactive");
  put(source.age, `holds ${bytes(status.wal.held_bytes)}`);
  source.node.classList.toggle("stuck", waiting);
  source.node.classList.toggle("moving", status.slot_active && !waiting);
  const batcher = parts.batcher;
  put(batcher.lsn, `${count(status.transactions)} tx`);
  put(batcher.rate, status.publish ? `mode ${status.publish}` : "");
  put(batcher.age, "");
  batcher.node.classList.toggle("moving", status.state === "streaming");
  for (const [name, channel] of Object.entries(status.channels)) {
    const part = parts[name];
    if (!part?.fill) continue;
    const blocked = Math.max(0, channel.blocked_seconds - (blockedBefore[name] ?? channel.blocked_seconds));
    blockedBefore[name] = channel.blocked_seconds;
    const share = Math.max(channel.items / channel.capacity, Math.min(1, blocked));
    part.fill.style.width = `${Math.round(share * 100)}%`;
    part.node.classList.toggle("full", share > 0.8);
    put(part.label, share > 0.8 ? "full" : `${channel.items} of ${channel.capacity}`);
    part.node.title = `channel ${name}: ${channel.items} of ${channel.capacity} items waiting; the sender has waited ${channel.blocked_seconds.toFixed(1)} s for room since the pipeline started`;
  }
  put(parts.replication.label, "");
  put(parts["in flight"].label, `${count(status.in_flight_messages)} in flight`);
  put(parts.acknowledged.label, point && point[7] !== null ? `ack ${milliseconds(point[7])}` : "");
  const flowing = status.state === "streaming" && rate > 0;
  for (const part of Object.values(parts)) if (part.node.classList.contains("link")) part.node.classList.toggle("flowing", flowing);
}

// ---- numbers, WAL, stream

const tiles = {};
for (const [id, label] of [
  ["rate", "Changes/s, 10 s"], ["lag", "Lag"], ["p50", "Latency, p50"], ["p99", "Latency, p99"],
  ["total", "Changes stored"], ["reconnects", "Interruptions"], ["uptime", "Uptime"],
]) {
  const value = make("b"), tile = make("div", { className: "tile" }, make("span", {}, label), value);
  tiles[id] = { value, tile };
  $("tiles").append(tile);
}

function showTiles(status) {
  put(tiles.rate.value, count(status.events_per_second));
  put(tiles.lag.value, status.lag_seconds ? duration(status.lag_seconds) : "0 s");
  tiles.lag.tile.classList.toggle("alert", status.lag_seconds > 30);
  put(tiles.p50.value, milliseconds(status.latency_ms.p50));
  put(tiles.p99.value, milliseconds(status.latency_ms.p99));
  put(tiles.total.value, status.cdc_events_published < 1e8 ? whole.format(status.cdc_events_published) : short(status.cdc_events_published));
  tiles.total.tile.title = whole.format(status.cdc_events_published);
  put(tiles.reconnects.value, whole.format(status.reconnect_count + status.nats_reconnect_count));
  tiles.reconnects.tile.title = `${status.reconnect_count} of PostgreSQL, ${status.nats_reconnect_count} of NATS`;
  put(tiles.uptime.value, duration(status.uptime_seconds));
}

function fixLine(text) {
  const code = make("code", {}, text);
  return make("div", { className: "fix" }, make("pre", {}, code),
    make("button", { type: "button", className: "small", onclick: () => copy(code) }, "Copy"));
}

function facts(...pairs) {
  return make("dl", { className: "facts" }, ...pairs.filter(Boolean).flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)]));
}

const shown = {};
// Rebuild a part of the page only when its data has changed, so that a selection or focus in it survives
function rebuild(id, key, build) {
  const text = JSON.stringify(key);
  if (shown[id] === text) return;
  shown[id] = text;
  $(id).replaceChildren(...build().filter(Boolean));
}

function showWal(status) {
  const { held_bytes, unconfirmed_bytes, safe_bytes, budget_bytes, limited, seconds_to_loss, restart_lsn } = status.wal;
  rebuild("wal", [status.wal, status.wal_status], () => {
    const open = Math.min(unconfirmed_bytes, held_bytes), kept = held_bytes - open;
    const scale = budget_bytes || Math.max(held_bytes, 1073741824);
    const bar = make("div", { className: "budget", role: "img", "aria-label": `${bytes(held_bytes)} held of ${budget_bytes ? bytes(budget_bytes) : "no limit"}` });
    for (const [part, size] of [["kept", kept], ["open", open]]) {
      const piece = make("i", { className: part });
      piece.style.width = `${Math.min(100, (size / scale) * 100)}%`;
      if (size) piece.style.minWidth = "3px";
      bar.append(piece);
    }
    const key = (part, text) => make("span", {}, make("span", { className: `swatch ${part}` }), text);
    const legend = make("div", { className: "legend" },
      key("kept", `confirmed, still held ${bytes(kept)}`), key("open", `not yet confirmed ${bytes(open)}`),
      budget_bytes ? key("", `free ${bytes(safe_bytes)} of ${bytes(budget_bytes)}`) : key("", "no limit"));
    const words = [];
    if (status.wal_status === "lost") words.push(make("p", { className: "note" }, "The slot is lost: PostgreSQL has removed WAL that the slot needed."));
    else if (!limited) {
      words.push(make("p", { className: "note" }, "max_slot_wal_keep_size is -1: if the bridge stays away, PostgreSQL's disk fills."));
      words.push(fixLine("ALTER SYSTEM SET max_slot_wal_keep_size = '100GB'; SELECT pg_reload_conf();"));
    }
    if (open > 67108864) words.push(make("p", { className: "note" }, "Most of it is not yet confirmed: see which stage above is stuck."));
    else if (kept > 268435456) {
      words.push(make("p", { className: "note" }, "Confirmed but still held: restart_lsn advances after the oldest transaction ends and at the next checkpoint."));
      words.push(fixLine("SELECT pid, xact_start, query FROM pg_stat_activity ORDER BY xact_start LIMIT 5;"));
    }
    return [bar, legend, facts(["Slot", `${status.slot}${status.wal_status ? ` (${status.wal_status})` : ""}`], ["Restart LSN", restart_lsn],
      limited ? ["Time to limit", seconds_to_loss === null ? "never, at the present rate" : `${duration(seconds_to_loss)} at the present rate`] : null), ...words];
  });
}

function showStream(status, now) {
  const stream = status.jetstream;
  const age = stream.oldest_unix_s ? `${duration(now - stream.oldest_unix_s)} ago` : "–";
  rebuild("stream", [stream, age, status.stream_seq], () => {
    const used = stream.bytes_max ? stream.bytes / stream.bytes_max : 0;
    const fill = make("i", { className: "kept" });
    fill.style.width = `${Math.min(100, used * 100)}%`;
    if (stream.bytes) fill.style.minWidth = "3px";
    const bar = make("div", { className: "budget", role: "img", "aria-label": `${bytes(stream.bytes)} of ${stream.bytes_max ? bytes(stream.bytes_max) : "no limit"}` }, fill);
    const legend = make("div", { className: "legend" },
      make("span", {}, make("span", { className: "swatch kept" }), `stored ${bytes(stream.bytes)}`),
      make("span", {}, make("span", { className: "swatch" }), stream.bytes_max ? `limit ${bytes(stream.bytes_max)}` : "no limit in bytes"));
    return [bar, legend, facts(["Stream", status.stream], ["Messages", whole.format(stream.messages)],
      ["Last sequence", whole.format(Math.max(stream.last_seq, status.stream_seq))], ["Oldest message", age])];
  });
}

function showConsumers(status, now) {
  const list = status.consumers;
  $("consumers-section").hidden = !list.length;
  rebuild("consumers", list, () => list.map((one) => {
    const share = make("i"), row = make("tr", { className: one.history_used > 0.8 ? "late" : "" },
      make("td", { className: "name" }, one.name),
      make("td", { className: "number" }, whole.format(one.pending)),
      make("td", { className: "number wide" }, whole.format(one.unacknowledged)),
      make("td", { className: "share" }, make("div", { className: "meter", title: `${Math.round(one.history_used * 100)} % of the stream's history is still unread` }, share)));
    share.style.width = `${Math.min(100, one.history_used * 100)}%`;
    return row;
  }));
}

// ---- problems

function problemCard(problem, now) {
  const time = make("time", {}, ago(problem.since_unix_s, now));
  time.title = new Date(problem.since_unix_s * 1000).toLocaleString("en-GB");
  return make("li", {}, make("div", { className: "problem-head" }, make("span", { className: "code" }, problem.code),
    make("strong", {}, problem.what), time),
    problem.said ? make("p", {}, problem.said) : null, problem.means ? make("p", {}, problem.means) : null,
    problem.fix ? fixLine(problem.fix) : null);
}

function showProblems(status, now) {
  const minute = Math.floor(now / 60);
  $("problems-section").hidden = !status.problems.length;
  if (status.problems.length) rebuild("problems", [status.problems, minute], () => status.problems.map((p) => problemCard(p, now)));
  const past = status.recent_faults.filter((fault) => !status.problems.some((p) => p.what === fault.what && p.since_unix_s === fault.since_unix_s));
  $("faults-section").hidden = !past.length;
  if (past.length) rebuild("faults", [past, minute], () => past.map((p) => problemCard(p, now)));
}

// ---- snapshots

function showSnapshots(status, now) {
  const order = { running: 0, waiting: 1, failed: 2, done: 2 };
  const list = [...status.snapshots].sort((a, b) => order[a.state] - order[b.state] || b.started_at - a.started_at).slice(0, 25);
  $("snapshots-none").hidden = list.length > 0;
  rebuild("snapshots", list, () => list.map((one) => {
    const took = one.state === "running" ? now - one.started_at : one.seconds;
    const figures = one.state === "waiting" ? "" : [
      `${whole.format(one.rows)}${one.state === "running" && one.rows_expected ? ` of about ${whole.format(Math.max(one.rows, one.rows_expected))}` : ""} rows`,
      bytes(one.bytes), duration(took), took > 0 && one.rows ? `${short(Math.round(one.rows / took))} rows/s` : null,
    ].filter(Boolean).join(" · ");
    const known = tables.get(one.table), item = make("li", {}, make("div", { className: "snapshot-head" },
      make("span", { className: "name" }, known ? known.label : one.table),
      make("span", { className: `badge ${one.state}` }, one.state), make("span", { className: "figures" }, figures)));
    if (one.state === "running") {
      const fill = make("i"), meter = make("div", { className: `meter${one.rows_expected ? "" : " unknown"}`, role: "progressbar", "aria-label": `snapshot of ${one.table}` }, fill);
      if (one.rows_expected) {
        const percent = Math.min(99, Math.round((one.rows / one.rows_expected) * 100));
        fill.style.width = `${percent}%`;
        meter.setAttribute("aria-valuenow", percent);
      }
      item.append(meter);
    }
    if (one.error) item.append(make("p", { className: "error" }, one.error));
    return item;
  }));
}

// ---- tables

const tables = new Map();
let sorting = { by: "rate", down: true }, limit = ROWS, ordered = [], lastOrdered = 0, suspended = {};

function takeTables(rows, fresh, now, elapsed) {
  if (fresh) tables.clear();
  for (const table of tables.values()) table.rate = table.rate < 0.05 ? 0 : table.rate * 0.6;
  for (const [token, schema, name, ...rest] of rows) {
    const counts = rest.slice(0, 4), total = counts.reduce((a, b) => a + b, 0), known = tables.get(token);
    if (known) {
      known.rate += (0.4 * Math.max(0, total - known.total)) / elapsed;
      Object.assign(known, { counts, total, changed: rest[4] });
    } else {
      tables.set(token, { token, schema, name, label: schema === "public" ? name : `${schema}.${name}`, counts, total, rate: 0, changed: rest[4], row: null });
    }
  }
}

function order() {
  const wanted = $("search").value.trim().toLowerCase();
  const key = {
    name: (t) => t.label.toLowerCase(), rate: (t) => t.rate, total: (t) => t.total, changed: (t) => t.changed,
    ...Object.fromEntries(OPERATIONS.map((operation, i) => [operation, (t) => t.counts[i]])),
  }[sorting.by];
  ordered = [...tables.values()].filter((t) => !wanted || t.label.toLowerCase().includes(wanted) || t.token.toLowerCase().includes(wanted));
  const sign = sorting.down ? -1 : 1;
  ordered.sort((a, b) => {
    const first = (b.token in suspended) - (a.token in suspended);  // suspended tables need a person, so they come first
    if (first) return first;
    const x = key(a), y = key(b);
    if (x !== y) return x < y ? -sign : sign;
    return a.total !== b.total ? b.total - a.total : a.label < b.label ? -1 : 1;
  });
  lastOrdered = Date.now();
}

function rowOf(table) {
  if (table.row) return table.row;
  const cells = { rate: make("td", { className: "number" }), total: make("td", { className: "number" }), changed: make("td", { className: "number middling" }) };
  for (const operation of OPERATIONS) cells[operation] = make("td", { className: "number wide" });
  const state = make("span", { className: "badge failed", hidden: true }, "suspended");
  const name = make("td", { className: "name" });
  if (table.schema !== "public") name.append(make("span", { className: "schema" }, `${table.schema}.`));
  name.append(table.name, " ", state);
  const button = make("button", { type: "button", className: "small", onclick: () => requestSnapshot(table.token, table.label) }, "Snapshot");
  button.setAttribute("aria-label", `Request a snapshot of ${table.label}`);
  const tr = make("tr", {}, name, cells.rate, cells.total, ...OPERATIONS.map((o) => cells[o]), cells.changed, make("td", { className: "act" }, button));
  table.row = { tr, cells, state, button };
  return table.row;
}

function showTables(now) {
  const body = $("table-rows");
  const busy = body.matches(":hover") || body.contains(document.activeElement);
  if (ordered.length === 0 || (!busy && Date.now() - lastOrdered > 2900)) order();
  const page = ordered.slice(0, limit);
  const rows = page.map((table) => {
    const { tr, cells, state, button } = rowOf(table);
    put(cells.rate, table.rate < 0.05 ? "0" : count(table.rate));
    put(cells.total, whole.format(table.total));
    OPERATIONS.forEach((operation, i) => put(cells[operation], whole.format(table.counts[i])));
    put(cells.changed, table.changed ? ago(table.changed, now) : "–");
    state.hidden = !(table.token in suspended);
    state.title = suspended[table.token]?.what ?? "";
    button.disabled = posts === "closed";
    return tr;
  });
  if (rows.length !== body.children.length || rows.some((row, i) => body.children[i] !== row)) body.replaceChildren(...rows);
  const left = ordered.length - page.length;
  $("more").hidden = left <= 0;
  if (left > 0) put($("more"), `Show ${Math.min(ROWS, left)} more of ${whole.format(left)}`);
  put($("tables-count"), ordered.length === tables.size ? whole.format(tables.size) : `${whole.format(ordered.length)} of ${whole.format(tables.size)}`);
  $("tables-none").hidden = rows.length > 0;
  put($("tables-none"), tables.size ? "No matching table." : "No published table yet.");
}

$("search").addEventListener("input", () => {
  limit = ROWS;
  order();
  showTables(clockNow());
});
$("more").addEventListener("click", () => {
  limit += ROWS;
  showTables(clockNow());
});
document.querySelector("#tables thead").addEventListener("click", (event) => {
  const by = event.target.closest("button")?.dataset.sort;
  if (!by) return;
  sorting = { by, down: sorting.by === by ? !sorting.down : by !== "name" };
  for (const button of document.querySelectorAll("#tables th button")) {
    button.parentElement.setAttribute("aria-sort", button.dataset.sort !== by ? "none" : sorting.down ? "descending" : "ascending");
  }
  order();
  showTables(clockNow());
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.matches("input") && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    $("search").focus();
  }
});
$("snapshot-table").addEventListener("focus", () => {
  const names = [...tables.values()].map((t) => t.label).sort().slice(0, 2000);
  $("table-names").replaceChildren(...names.map((value) => make("option", { value })));
});

// ---- what the page may do

let posts = "closed", toastTimer = 0, stopping = false;

function toast(text) {
  put($("toast"), text);
  $("toast").classList.add("shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => $("toast").classList.remove("shown"), 6000);
}

async function copy(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    toast("Copied");
  } catch {  // browsers offer no clipboard without TLS, so select the text instead
    getSelection().selectAllChildren(code);
    toast("Selected: copy with the keyboard");
  }
}

function askForToken(words) {
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

async function post(path) {
  if (posts === "token" && !sessionStorage.getItem(TOKEN_KEY) && !(await askForToken())) return null;
  for (;;) {
    const token = sessionStorage.getItem(TOKEN_KEY);
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const reply = await fetch(path, { method: "POST", headers });
    const said = await reply.json().catch(() => ({}));
    if (reply.status === 401) {
      sessionStorage.removeItem(TOKEN_KEY);
      if (!(await askForToken("The bridge rejected this token. Enter it again, as in BRIDGE_HTTP_TOKEN."))) return null;
    } else if (!reply.ok) throw new Error(said.error || `${reply.status} ${reply.statusText}`);
    else return said;
  }
}

async function requestSnapshot(token, label) {
  try {
    if (await post(`snapshot/${token.split("/").map(encodeURIComponent).join("/")}`)) toast(`Snapshot of ${label} requested`);
  } catch (error) {
    toast(`Snapshot not requested: ${error.message}`);
  }
}

$("snapshot-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const wanted = $("snapshot-table").value.trim();
  if (!wanted) return;
  const known = [...tables.values()].find((t) => t.label === wanted);
  requestSnapshot(known ? known.token : wanted, wanted);
  $("snapshot-table").value = "";
});
$("token-button").addEventListener("click", () => askForToken());
$("stop-button").addEventListener("click", () => $("stop-dialog").showModal());
$("stop-cancel").addEventListener("click", () => $("stop-dialog").close());
$("stop-confirm").addEventListener("click", async () => {
  $("stop-dialog").close();
  try {
    if (await post("shutdown")) {
      stopping = true;
      $("stop-button").disabled = true;
      toast("Stopping: the bridge first stores and confirms what it has read");
    }
  } catch (error) {
    toast(`Bridge not stopped: ${error.message}`);
  }
});

$("pause-button").addEventListener("click", async () => {
  const path = $("pause-button").dataset.path;
  try {
    if (await post(path)) {
      toast(path === "pause" ? "Pausing: the bridge first stores and confirms what it has read, then releases its slot" : "Resuming");
    }
  } catch (error) {
    toast(`Bridge not ${path}d: ${error.message}`);
  }
});

// ---- live

let offset = 0, lastNow = 0, lastFrameAt = 0, lost = false;
const clockNow = () => Date.now() / 1000 + offset;

function show(frame) {
  const { status, now } = frame;
  offset = now - Date.now() / 1000;
  posts = frame.posts;
  suspended = status.suspended_tables;
  if (frame.whole) blockedBefore = {};
  takeTables(frame.tables, frame.whole, now, Math.max(0.2, now - lastNow));
  lastNow = now;
  $("verdict").className = `verdict ${status.verdict.level}`;
  put($("verdict-text"), status.verdict.text);
  rebuild("identity", [status.slot, status.publication, status.stream], () => [
    make("span", {}, "slot ", make("b", {}, status.slot), ", publication ", make("b", {}, status.publication), " → stream ", make("b", {}, status.stream))]);
  document.title = `${{ ok: "✓", warn: "!", bad: "✗" }[status.verdict.level]} ${status.stream} – Walbridge`;
  put($("version"), `Walbridge ${status.version}`);
  board.add(frame.points, frame.whole);
  const point = board.points[board.points.length - 1];
  showFlow(status, point, now);
  showTiles(status);
  showWal(status);
  showStream(status, now);
  showConsumers(status, now);
  showProblems(status, now);
  showSnapshots(status, now);
  showTables(now);
  const why = posts === "closed" ? "Set BRIDGE_HTTP_TOKEN to allow this beyond loopback" : "";
  $("pause-button").dataset.path = status.paused ? "resume" : "pause";
  put($("pause-button"), status.paused ? "Resume" : "Pause");
  for (const id of ["stop-button", "pause-button", "snapshot-submit"]) {
    $(id).disabled = posts === "closed" || (id !== "snapshot-submit" && (stopping || status.state === "draining"));
    $(id).title = why;
  }
  $("token-button").hidden = posts !== "token";
}

function setLive(on, text) {
  $("live").className = `live ${on ? "on" : "off"}`;
  put($("live-text"), text);
  document.documentElement.classList.toggle("stale", !on);
}

function lose() {
  if (!lastFrameAt && !lost) setLive(false, "no answer");
  lost = true;
  const since = lastFrameAt ? ` This page shows its state at ${clock(lastFrameAt / 1000 + offset, true)}.` : "";
  $("verdict").className = "verdict bad";
  put($("verdict-text"), stopping ? `The bridge has stopped.${since}` : `No answer from the bridge.${since} Retrying every few seconds.`);
  document.title = "✗ no answer – Walbridge";
  setLive(false, stopping ? "stopped" : "no answer");
}

function connect() {
  const source = new EventSource("events");
  source.onmessage = (event) => {
    lastFrameAt = Date.now();
    lost = false;
    const frame = JSON.parse(event.data);
    if (stopping && frame.whole) stopping = false;  // a bridge is running again
    show(frame);
    setLive(true, "live");
  };
  source.onerror = () => {
    source.close();
    lose();
    setTimeout(connect, 3000);
  };
}
// a frozen peer closes no connection
setInterval(() => {
  if (lastFrameAt && !lost && Date.now() - lastFrameAt > 6000) lose();
}, 2000);
connect();
