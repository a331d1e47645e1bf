// The first view: everything of the bridge at a glance.

import { $, bar, facts, fixLine, make, put, rebuild } from "./dom.js";
import { showFlow } from "./flow.js";
import { ago, bytes, count, duration, milliseconds, seen, short, whole } from "./format.js";
import { drawJournal } from "./plots.js";
import { showProblems } from "./problems.js";
import { kindOf } from "./readers.js";
import { linkTo } from "./router.js";
import { showSnapshots } from "./snapshots.js";
import { state } from "./state.js";
import { showTables } from "./tables.js";

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
  put(tiles.rate.value, status.events_per_second < 1e6 ? count(status.events_per_second) : short(status.events_per_second));
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

const legendKey = (part, text) => make("span", {}, make("span", { className: `swatch ${part}` }), text);

function showWal(status, now) {
  const { held_bytes, unconfirmed_bytes, safe_bytes, budget_bytes, limited, seconds_to_loss, restart_lsn } = status.wal;
  const isAway = status.state === "waiting_postgres", looked = seen(status.wal.looked_at, now).slice(2, -1);
  rebuild($("wal"), [{ ...status.wal, looked_at: 0 }, status.wal_status, isAway, looked], () => {
    const open = Math.min(unconfirmed_bytes, held_bytes), kept = held_bytes - open;
    const scale = budget_bytes || Math.max(held_bytes, 1073741824);
    const made = bar(`${bytes(held_bytes)} held of ${budget_bytes ? bytes(budget_bytes) : "no limit"}`, ["kept", kept / scale], ["open", open / scale]);
    const legend = make("div", { className: "legend" },
      legendKey("kept", `confirmed, still held ${bytes(kept)}`), legendKey("open", `not yet confirmed ${bytes(open)}`),
      budget_bytes ? legendKey("", `free ${bytes(safe_bytes)} of ${bytes(budget_bytes)}`) : legendKey("", "no limit"));
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
    return [made, legend, facts(["Slot", `${status.slot}${status.wal_status ? ` (${status.wal_status})` : ""}`], ["Restart LSN", restart_lsn],
      limited && seconds_to_loss !== null && !isAway ? ["Time to limit", `${duration(seconds_to_loss)} at the present rate`] : null,
      looked ? ["Looked at", looked] : null), ...words];
  });
}

function showStream(status, now) {
  const stream = status.jetstream;
  const age = stream.oldest_unix_s ? `${duration(now - stream.oldest_unix_s)} ago` : "–";
  const looked = ago(stream.looked_at, now);
  rebuild($("stream"), [{ ...stream, looked_at: 0 }, age, looked], () => {
    const used = stream.bytes_max ? stream.bytes / stream.bytes_max : 0;
    const made = bar(`${bytes(stream.bytes)} of ${stream.bytes_max ? bytes(stream.bytes_max) : "no limit"}`, ["kept", stream.bytes ? Math.max(used, 1e-9) : 0]);
    const legend = make("div", { className: "legend" }, legendKey("kept", `stored ${bytes(stream.bytes)}`),
      legendKey("", stream.bytes_max ? `limit ${bytes(stream.bytes_max)}` : "no limit in bytes"));
    return [made, legend, facts(["Stream", status.stream], ["Messages", whole.format(stream.messages)],
      ["Last sequence", whole.format(stream.last_seq)], ["Oldest message", age], ["Looked at", looked])];
  });
}

function showConsumers(status) {
  const list = status.consumers;
  $("consumers-section").hidden = !list.length;
  rebuild($("consumers"), list.map((one) => ({ ...one, looked_at: 0 })), () => list.map((one) => {
    const share = make("i"), row = make("tr", { className: one.at_risk ? "late" : "" },
      make("td", { className: "name" }, make("a", { href: linkTo("consumer", one.name), title: one.name }, one.note.kind ? kindOf(one) : one.name), one.is_left ? " (left: JetStream removes it)" : ""),
      make("td", { className: "number" }, whole.format(one.pending)),
      make("td", { className: "number wide" }, whole.format(one.unacknowledged)),
      make("td", { className: "share" }, make("div", { className: "meter", title: `${Math.round(one.history_used * 100)} % of the stream is still unread${one.at_risk ? ", and the stream discards its oldest messages" : ""}` }, share)));
    share.style.width = `${Math.min(100, one.history_used * 100)}%`;
    return row;
  }));
}

export const overview = {
  element: "view-overview",
  update() {
    const { status, now } = state;
    if (!status) return;
    showFlow(status, now);
    showTiles(status);
    showWal(status, now);
    showStream(status, now);
    showConsumers(status, now);
    showProblems(status, now);
    showSnapshots(status, now);
    showTables(now);
    $("snapshot-submit").disabled = state.posts === "closed";
    $("snapshot-submit").title = state.posts === "closed" ? "Set BRIDGE_HTTP_TOKEN to allow this beyond loopback" : "";
    drawJournal(state.journal);
    state.board.refresh();
  },
};
