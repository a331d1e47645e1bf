"""Checks of `walbridge doctor` that need both sides: where a bridge would resume, whether rows fit, and the clocks."""

from __future__ import annotations

import time

import trio

from actors.clients.nats.jetstream import JetStream
from actors.clients.nats.record_store import encoded_record
from actors.clients.postgres.connection import PostgresError
from actors.clients.postgres.row_widths import widest_row
from actors.contract.bridge_record import BridgeRecord
from actors.contract.subjects import BRIDGES, bucket_stream
from actors.doctor.checking import Check, Found, NotChecked, warned
from actors.doctor.connections import BothSides
from actors.doctor.nats_checks import NatsSide
from actors.doctor.postgres_checks import PostgresSide
from actors.doctor.round_trip import round_trip
from actors.errors import SourceUnavailable
from actors.pause import paused_words
from actors.positions import format_lsn
from actors.settings.config import Config
from actors.startup.other_bridges import check_slot_feeds_no_other, read_other_bridges, same_tables_elsewhere
from actors.startup.start_plan import foresee_start
from actors.telemetry.quantities import counted, human_bytes
from actors.telemetry.telemetry import Problem
from actors.wire.jetstream import unix_time

SKEW_S = 2.0
"""More than what a clock that NTP sets is wrong by."""
WIDTHS_S = 3.0
"""How long the search for the widest rows may take, all tables together."""
SERVERS_MAX_MB = 64
"""A max_payload above nats-server's own max_pending keeps it from starting."""


class PathSide:
    """The path between the servers as one run of the doctor sees it."""

    def __init__(self, config: Config, postgres: PostgresSide, nats: NatsSide) -> None:
        self._config, self._postgres, self._nats = config, postgres, nats

    def checks(self, *, with_round_trip: bool) -> dict[str, Check[BothSides]]:
        """Return the checks by name."""
        found: dict[str, Check[BothSides]] = {
            "resume": self._resume, "record": self._record, "other bridges": self._other_bridges,
            "widest row": self._widest, "clocks": self._clocks,
        }  # fmt: skip
        return {**found, "round trip": self._round_trip if with_round_trip else _not_tried}

    async def _resume(self, sides: BothSides) -> Found:
        """Decide where the bridge would go on if it started now."""
        config = self._config
        if not self._nats.is_known:
            raise NotChecked("it is unknown which streams exist")
        if not self._postgres.has_slot:
            raise NotChecked(f"slot {config.source.slot} cannot be this bridge's")
        await check_slot_feeds_no_other(sides.postgres, JetStream(sides.nats), config.source.slot, config.publish.stream)
        tables = {table.token: table.relation_oid for table in self._postgres.tables}
        start = await foresee_start(config, sides.postgres, JetStream(sides.nats), tables)
        if start is None:
            return Found("the bridge makes its slot, and begins there", level="note")
        if start.gap is not None:
            return warned("", Problem(
                "", f"the next start stores a gap event: {start.gap.reason}",
                means=f"changes from {format_lsn(start.gap.from_lsn)} to {format_lsn(start.gap.to_lsn)} may be missing: "
                "replicas copy their tables again",
                fix="walbridge run   # if what is lost cannot be brought back",
            ))  # fmt: skip
        where = "nothing is stored yet: from the slot's position on"
        if start.last_seq:
            where = f"after message {start.last_seq:,}, which is at {format_lsn(start.skip.lsn)}"
        return warned(f"{where}; {start.warning}" if start.warning else where, await self._paused(sides))

    async def _paused(self, sides: BothSides) -> Problem | None:
        """Return the problem that somebody has paused the bridge: everything else may be well, and nothing is stored."""
        stream = self._config.publish.stream
        entry = None
        if bucket_stream(BRIDGES) in self._nats.infos:
            entry = await JetStream(sides.nats).kv_get(BRIDGES, stream)
        since = 0.0 if entry is None else BridgeRecord.decode(entry.data, stream).paused_at
        if not since:
            return None
        means = "nothing is stored meanwhile, and PostgreSQL keeps the WAL"
        return Problem("", f"the bridge is {paused_words(since)}", means=means, fix="walbridge resume")

    async def _own_record(self, sides: BothSides) -> BridgeRecord:
        """Return what the bridge would write of itself, without a position."""
        source, tables = self._config.source, self._postgres.tables
        ((system_id, database),) = await sides.postgres.query(
            "SELECT system_identifier, current_database() FROM pg_control_system()"
        )
        return BridgeRecord(
            source.slot, source.publication, system_id or "", 1, database=database or "",
            tables=tuple(sorted(table.token for table in tables)),
            schemas={table.token: table.facts.schema_id for table in tables},
        )  # fmt: skip

    async def _record(self, sides: BothSides) -> Found:
        """See that the record of so many tables fits into a message. Raises ConfigError."""
        data = encoded_record(await self._own_record(sides), self._config.publish.stream, sides.nats.max_payload)
        return Found(f"about {human_bytes(len(data))} of at most {human_bytes(sides.nats.max_payload)}")

    async def _other_bridges(self, sides: BothSides) -> Found:
        if not self._nats.is_known:
            raise NotChecked("it is unknown which streams exist")
        if bucket_stream(BRIDGES) not in self._nats.infos:
            return Found("none: there is no bucket bridges yet", level="note")
        others = await read_other_bridges(JetStream(sides.nats), self._config.publish.stream)
        words = f"{counted(len(others), 'other bridge')} in this account" if others else "no other bridge in this account"
        return warned(words, *same_tables_elsewhere(await self._own_record(sides), others))

    async def _widest(self, sides: BothSides) -> Found:
        """Compare the widest rows with the largest message."""
        if not self._nats.payload_max:
            raise NotChecked("the size of the largest message is unknown")
        limit, until = self._nats.payload_max, trio.current_time() + WIDTHS_S
        tables = [table for table in self._postgres.tables if not table.unreadable]
        widths: list[tuple[int, str]] = []
        for table in tables:
            left_s = until - trio.current_time()
            if left_s <= 0:
                break
            try:  # the server ends the statement: a cancelled one would end the connection, too
                await sides.postgres.query(f"SET statement_timeout = {max(1, int(left_s * 1000))}")
                widths.append((await widest_row(sides.postgres, table), f"{table.schema}.{table.name}"))
            except (PostgresError, SourceUnavailable) as exc:
                if getattr(exc, "code", "") == "WB102":
                    raise
        await sides.postgres.query("SET statement_timeout = 0")
        too_wide = [one for one in widths if one[0] > limit]
        size, name = max(widths, default=(0, ""))
        if not too_wide:
            words = f"about {human_bytes(size)}, in {name}" if size else "no table has wide rows"
            if len(widths) < len(tables):
                words += f"; {len(widths)} of {counted(len(tables), 'table')} could be looked at in {WIDTHS_S:g} s"
                return Found(words, level="note")
            return Found(words)
        others = f" and {counted(len(too_wide) - 1, 'other table')}" if len(too_wide) > 1 else ""
        needed_mb = min(-(-2 * size // 2**20), SERVERS_MAX_MB)
        fix = f"max_payload: {needed_mb}MB   # in nats-server's configuration, then: nats-server --signal reload"
        if size >= SERVERS_MAX_MB << 20:
            fix = f"leave large columns out of the publication: nats-server takes messages of up to {SERVERS_MAX_MB} MB"
        elif limit < sides.nats.max_payload:
            fix = "\n".join(f"nats stream edit {stream} --max-msg-size=-1" for stream in self._nats.narrow)
        return warned("", Problem(
            "WB247", f"a row of {name} is about {human_bytes(size)}{others}: messages may have {human_bytes(limit)}",
            means="the largest columns of such a row are left out of its events (`omitted`), and snapshots of its table fail",
            fix=fix,
        ))  # fmt: skip

    async def _clocks(self, sides: BothSides) -> Found:
        """Compare the clocks of both servers with this machine's."""
        before = time.time()
        ((text,),) = await sides.postgres.query("SELECT extract(epoch FROM clock_timestamp())")
        after = time.time()
        skews = {"PostgreSQL": (float(text or 0) - (before + after) / 2, (after - before) / 2)}
        stream = next(iter(self._nats.infos), "")
        if stream:
            before = time.time()
            info = await JetStream(sides.nats).stream_info(stream)
            after = time.time()
            said = str((info or {}).get("ts") or "")
            if said:
                skews["NATS"] = unix_time(said) - (before + after) / 2, (after - before) / 2
        words = ", ".join(f"{name} {skew:+.3f} s" for name, (skew, _) in skews.items())
        wrong = [name for name, (skew, about) in skews.items() if abs(skew) - about > SKEW_S]
        if not wrong:
            return Found(words if "NATS" in skews else f"{words}; NATS tells its time with its first stream")
        return warned("", Problem(
            "WB248", f"clocks differ from this machine's: {words}",
            means="ages and latencies on the page and in metrics are wrong by as much; positions and exactness are not",
            fix="timedatectl set-ntp true   # on the machine whose clock is wrong",
        ))  # fmt: skip

    async def _round_trip(self, sides: BothSides) -> Found:
        return await round_trip(self._config, sides.postgres, JetStream(sides.nats))


async def _not_tried(_: BothSides) -> Found:
    return Found(
        "not tried: --round-trip sends one row through servers and bridge code, and removes what it made", level="note"
    )
