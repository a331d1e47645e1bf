"""Stands in for `PgConnection` and `ReplicationStream`: libpq is not simulated, everything above it is real."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence

import trio
from psycopg import pq

from actors.clients.postgres.connection import ENDING, PASSING, QUERY_TIMEOUT_S, Notice, PostgresError
from actors.clients.postgres.replication import publication_missing, publication_too_new
from actors.errors import SourceUnavailable, WalbridgeError
from actors.messages import RawMessage
from actors.positions import Lsn
from actors.settings.config import PostgresConfig
from actors.wire.replication import encode_status
from actors.wire.text_encoding import UTF8
from property_tests.simulation.network import Link, Network
from property_tests.simulation.postgres.results import made_result
from property_tests.simulation.postgres.session import PgSession
from property_tests.simulation.postgres.statements import Respond, Rows, rows_of

ADDRESS = "postgres:5432/postgres"
VERSION = 180006
NOTICE = b"N"
"""Stands for PostgreSQL 18's warning that it skips a missing publication."""


class SimulatedConnection:
    """`PgConnection` over a simulated link."""

    def __init__(self, link: Link, config: PostgresConfig) -> None:
        assert isinstance(link.session, PgSession)
        self.link, self.session, self.config = link, link.session, config
        self.address, self.encoding, self.database = ADDRESS, UTF8, "postgres"
        self.server_version, self.is_standby, self.server_encoding = VERSION, False, "UTF8"
        self.backend_pid = link.session.pid
        self.notices: list[Notice] = []

    @classmethod
    async def connect(cls, network: Network, config: PostgresConfig, **_: object) -> SimulatedConnection:
        """As `PgConnection.connect`. Raises SourceUnavailable."""
        await trio.sleep(network.latency_s())
        link = network.connect(config.conninfo.removeprefix("host="))
        if link is None:
            raise SourceUnavailable("WB101", f"cannot connect to PostgreSQL at {ADDRESS}", said="Connection refused")
        return cls(link, config)

    async def query(self, sql: str, params: Sequence[str | int | None] = (), *, timeout_s: float = QUERY_TIMEOUT_S) -> Rows:
        """As `PgConnection.query`."""
        texts = [None if p is None else str(p) for p in params]
        return await self._answer(lambda respond: self.session.ask(sql, texts, respond), timeout_s)

    async def start_replication(self, slot: str, start_lsn: Lsn, arrive: Callable[[Sequence[bytes]], None]) -> None:
        """START_REPLICATION. Raises PostgresError, SourceUnavailable."""
        await self._answer(lambda respond: self.session.start_replication(slot, start_lsn, arrive, respond), QUERY_TIMEOUT_S)

    async def _answer(self, ask: Callable[[Respond], None], timeout_s: float) -> Rows:
        answers: list[Rows | PostgresError] = []

        def arrived(found: Sequence[Rows | PostgresError]) -> None:
            answers.extend(found)
            self.link.wake()

        def respond(found: Rows | PostgresError) -> None:
            self.link.travel(1, [found], arrived)

        try:
            with trio.fail_after(timeout_s):
                await trio.lowlevel.checkpoint()
                self.link.travel(0, [ask], lambda sent: sent[0](respond))
                while not answers:
                    if self.link.broken or self.link.closing:
                        raise self.lost()
                    await self.link.changed()
        except trio.TooSlowError:
            self.close()
            raise SourceUnavailable("WB102", f"PostgreSQL at {ADDRESS} has not answered within {timeout_s:g} s") from None
        except BaseException:
            self.close()
            raise
        found = answers[0]
        if not isinstance(found, PostgresError):
            return found
        if found.sqlstate.startswith(ENDING):
            raise self.lost()
        if found.sqlstate.startswith(PASSING):
            raise SourceUnavailable("WB118", f"PostgreSQL {ADDRESS} cannot do this now", said=found.said)
        raise found

    async def blocks(self, sql: str, rows_max: int) -> AsyncGenerator[pq.abc.PGresult]:
        """As `PgConnection.blocks`."""
        columns, rows = rows_of(self.session, sql)
        size = max(1, min(rows_max, 7))
        for start in range(0, len(rows), size):
            await trio.sleep(0.002)
            if self.link.broken or self.link.closing:
                raise self.lost()
            yield made_result(columns, rows[start : start + size])

    def lost(self, exc: BaseException | None = None) -> SourceUnavailable:
        self.close()
        return SourceUnavailable("WB102", f"connection to PostgreSQL {ADDRESS} lost", said=str(exc or "cut"))

    def close(self) -> None:
        self.link.close()
        self.link.wake()

    async def abandon(self) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()
        self.close()


class SimulatedStream:
    """`ReplicationStream` over a simulated link."""

    is_renewable = True

    def __init__(
        self, connection: SimulatedConnection, slot: str, publication: str, server: object = None, _tables: Sequence[str] = ()
    ) -> None:
        self._connection, self._slot, self._publication = connection, slot, publication
        self._link = connection.link
        self._arrived: deque[bytes] = connection.link.messages
        self._closed = False

    async def read_block(self, messages_max: int, bytes_max: int) -> list[RawMessage]:
        """As `ReplicationStream.read_block`."""
        await trio.lowlevel.checkpoint()
        while not self._arrived:
            if self._link.broken or self._link.closing:
                raise self._connection.lost()
            await self._link.changed()
        block: list[RawMessage] = []
        while self._arrived and len(block) < messages_max and bytes_max > 0 and self._arrived[0] != NOTICE:
            block.append(self._arrived.popleft())
            bytes_max -= len(block[-1])
        if self._arrived and self._arrived[0] == NOTICE:
            raise self._publication_fault()
        return block

    def _publication_fault(self) -> WalbridgeError:
        self._connection.close()
        if self._connection.session.server.database.publication is None:
            return publication_missing(self._publication, "55000 skipped loading publication")
        return publication_too_new(self._publication, self._slot, "55000 skipped loading publication", standby=False)

    async def send_status(self, received: Lsn, flushed: Lsn, applied: Lsn, *, reply_wanted: bool = False) -> None:
        """As `ReplicationStream.send_status`."""
        await trio.lowlevel.checkpoint()
        if self._link.broken or self._link.closing:
            raise self._connection.lost()
        status = encode_status(received, flushed, applied, 0, reply_wanted=reply_wanted)
        session = self._connection.session
        self._link.travel(0, [status], lambda sent: session.received(b"".join(sent)))

    async def renew(self, _start_lsn: Lsn) -> bool:
        raise AssertionError("no row here is huge")

    async def close(self) -> None:
        """End the COPY, so that the slot is free on return."""
        if self._closed:
            return
        self._closed = True
        session = self._connection.session
        self._connection.close()
        if session.sender is not None and not self._link.broken:
            session.sender.end()
        await trio.lowlevel.cancel_shielded_checkpoint()


async def start(connection: SimulatedConnection, slot: str, publication: str, start_lsn: Lsn) -> None:
    """Instead of `replication._start`."""
    link = connection.link

    def arrive(messages: Sequence[bytes]) -> None:
        link.messages.extend(messages)
        link.wake()

    assert publication
    await connection.start_replication(slot, start_lsn, arrive)
