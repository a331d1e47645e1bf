"""What `walbridge doctor` asks both sides together: where a bridge would resume, whether rows fit, clocks, the HTTP port."""

from __future__ import annotations

import errno
import http.client
import json
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import trio

from actors.clients.nats.connection import NatsConnection, open_nats
from actors.clients.nats.jetstream import JetStream
from actors.clients.postgres.connection import PgConnection, PostgresError
from actors.clients.postgres.row_widths import widest_row
from actors.contract.bridge_record import BridgeRecord
from actors.contract.subjects import BRIDGES, bucket_stream
from actors.doctor.checking import Check, Found, NotChecked, warned
from actors.doctor.nats_checks import NatsSide
from actors.doctor.postgres_checks import PostgresSide
from actors.doctor.round_trip import round_trip
from actors.errors import SourceUnavailable
from actors.positions import format_lsn
from actors.settings.config import Config, HttpConfig
from actors.startup.other_bridges import read_other_bridges, same_tables_elsewhere
from actors.startup.start_plan import foresee_start
from actors.telemetry.quantities import counted, human_bytes
from actors.telemetry.telemetry import Problem
from actors.web.serving import cannot_listen

SKEW_S = 2.0
"""More than what a clock that NTP sets is wrong by."""
WIDTHS_S = 3.0
"""How long the search for the widest rows may take, all tables together."""


class BothSides(NamedTuple):
    """A connection to each server."""

    postgres: PgConnection
    nats: NatsConnection


@asynccontextmanager
async def open_both(config: Config) -> AsyncGenerator[BothSides]:
    """Open both connections, and close them in the end."""
    postgres = await PgConnection.connect(config.postgres, application_name="walbridge doctor")
    with closing(postgres):
        await postgres.query("SET lock_timeout = '1s'")
        async with open_nats(config.nats, set()) as nats:
            yield BothSides(postgres, nats)


class PathSide:
    """The path between the servers as one run of the doctor sees it."""

    def __init__(self, config: Config, postgres: PostgresSide, nats: NatsSide) -> None:
        self._config, self._postgres, self._nats = config, postgres, nats

    def checks(self, *, with_round_trip: bool) -> dict[str, Check[BothSides]]:
        """Return the checks by name."""
        found: dict[str, Check[BothSides]] = {
            "resume": self._resume, "other bridges": self._other_bridges, "widest row": self._widest, "clocks": self._clocks,
        }  # fmt: skip
        return {**found, "round trip": self._round_trip if with_round_trip else _not_tried}

    async def _resume(self, sides: BothSides) -> Found:
        """Decide where the bridge would go on if it started now."""
        config = self._config
        if not self._nats.is_known:
            raise NotChecked("it is unknown which streams exist")
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
        return Found(f"{where}; {start.warning}" if start.warning else where)

    async def _other_bridges(self, sides: BothSides) -> Found:
        config = self._config
        if not self._nats.is_known:
            raise NotChecked("it is unknown which streams exist")
        if bucket_stream(BRIDGES) not in self._nats.infos:
            return Found("none: there is no bucket bridges yet", level="note")
        js = JetStream(sides.nats)
        others = await read_other_bridges(js, config.publish.stream)
        ((system_id, database),) = await sides.postgres.query(
            "SELECT system_identifier, current_database() FROM pg_control_system()"
        )
        own = BridgeRecord(
            config.source.slot, config.source.publication, system_id or "", 1, database=database or "",
            tables=tuple(sorted(table.token for table in self._postgres.tables)),
        )  # fmt: skip
        words = f"{counted(len(others), 'other bridge')} in this account" if others else "no other bridge in this account"
        return warned(words, *same_tables_elsewhere(own, others))

    async def _widest(self, sides: BothSides) -> Found:
        """Compare the widest rows with the largest message."""
        if not self._nats.payload_max:
            raise NotChecked("the size of the largest message is unknown")
        limit, until = self._nats.payload_max, trio.current_time() + WIDTHS_S
        widest, widest_name, seen, too_wide = 0, "", 0, []
        tables = [table for table in self._postgres.tables if not table.unreadable]
        for table in tables:
            try:
                with trio.fail_after(max(0.0, until - trio.current_time())):
                    size = await widest_row(sides.postgres, table)
            except trio.TooSlowError:
                break
            except (PostgresError, SourceUnavailable) as exc:
                if getattr(exc, "code", "") == "WB102":
                    raise
                continue
            seen += 1
            if size > widest:
                widest, widest_name = size, f"{table.schema}.{table.name}"
            if size > limit:
                too_wide.append((size, f"{table.schema}.{table.name}"))
        of = "" if seen == len(tables) else f" of the {seen} that could be looked at in {WIDTHS_S:g} s"
        if not too_wide:
            return Found(f"about {human_bytes(widest)}, in {widest_name}{of}" if widest else f"no table has wide rows{of}")
        size, name = max(too_wide)
        others = f" and {counted(len(too_wide) - 1, 'other table')}" if len(too_wide) > 1 else ""
        needed = -(-2 * size // 2**20)
        fix = f"max_payload: {needed}MB   # in nats-server's configuration, then: nats-server --signal reload"
        if limit < sides.nats.max_payload:
            fix = f"nats stream edit {self._config.publish.stream} --max-msg-size=-1"
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
                skews["NATS"] = _unix_s(said) - (before + after) / 2, (after - before) / 2
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


def _unix_s(text: str) -> float:
    """Read RFC 3339 with up to nine digits of a second."""
    seconds, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{seconds}+00:00").timestamp() + float(f"0.{fraction or 0}")


# -- the HTTP port, for which no server is needed


async def check_port(http_config: HttpConfig, slot: str) -> Found:
    """See whether the bridge may listen where it is told to, or listens there already. Raises ConfigError."""
    try:
        family = socket.AF_INET6 if ":" in http_config.bind else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((http_config.bind, http_config.port))
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            raise cannot_listen(http_config, exc) from None
        status = await trio.to_thread.run_sync(partial(_status, http_config), abandon_on_cancel=True)
        if status is None:
            raise cannot_listen(http_config, exc) from None
        if status.get("slot") != slot:
            raise cannot_listen(http_config, exc, f"the bridge of slot {status.get('slot')} listens there") from None
        verdict = (status.get("verdict") or {}).get("text", "")
        return Found(f"the bridge of this slot runs on {http_config.port}: {verdict}")
    return Found(f"{http_config.bind}:{http_config.port} is free")


def _status(http_config: HttpConfig) -> dict[str, Any] | None:
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    connection = http.client.HTTPConnection(local.get(http_config.bind, http_config.bind), http_config.port, timeout=2)
    try:
        connection.request("GET", "/status", headers={"Host": "localhost"})
        found = json.loads(connection.getresponse().read())
        return found if isinstance(found, dict) and "slot" in found else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
