"""One connection to PostgreSQL, on trio: psycopg's I/O-free generators and libpq, driven by trio. TLS is libpq's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import psycopg
import trio
from psycopg import conninfo, generators, pq
from psycopg.waiting import Ready, Wait

from actors.config import PostgresConfig
from actors.errors import SourceUnavailable, WalbridgeError

T = TypeVar("T")
CONNECT_TIMEOUT_S = 10.0
QUERY_TIMEOUT_S = 60.0
SESSION = "-c datestyle=ISO -c intervalstyle=postgres -c timezone=UTC -c bytea_output=hex -c extra_float_digits=1"
"""What the text of values depends on: pinned, whatever the server, the database or the role has set."""
_DEFAULTS = {
    "connect_timeout": "10",
    "client_encoding": "UTF8",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "4",
}
_PASSING = ("08", "57P", "53300")


class Notice(NamedTuple):
    """A NoticeResponse."""

    severity: str
    sqlstate: str
    message: str


class PostgresError(WalbridgeError):
    """PostgreSQL refused a statement; who asked knows what it means."""

    def __init__(self, sqlstate: str, message: str, detail: str = "", hint: str = "") -> None:
        said = f"{sqlstate} {message}" + (f": {detail}" if detail else "")
        super().__init__("WB100", "PostgreSQL refused a statement", said=said, fix=hint)
        self.sqlstate, self.message, self.detail, self.hint = sqlstate, message, detail, hint


class SourceRefused(SourceUnavailable):
    """PostgreSQL does not let this role in. Fatal before anything worked, else it passes when it is mended."""


class PgConnection:
    """An open connection for one task at a time. A cancelled query closes it: its reply would be read as the next one's."""

    def __init__(self, connection: pq.abc.PGconn, address: str) -> None:
        self.pgconn = connection
        self.address = address
        self.notices: list[Notice] = []
        connection.notice_handler = self._on_notice

    @classmethod
    async def connect(
        cls, config: PostgresConfig, *, application_name: str, replication: bool = False
    ) -> PgConnection:
        """Connect to the first host that answers. Raises SourceUnavailable, or SourceRefused for credentials."""
        words = {**_DEFAULTS, **conninfo.conninfo_to_dict(config.conninfo), "application_name": application_name}
        words["options"] = f"{words.get('options') or ''} {SESSION}".strip()
        if replication:
            words["replication"] = "database"
        address = _address(words)
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                last: SourceUnavailable | None = None
                for attempt in await _attempts(words, address):
                    try:
                        return cls(await drive_connect(generators.connect(conninfo.make_conninfo("", **attempt))), address)
                    except psycopg.OperationalError as exc:
                        last = _connect_error(exc, address)
                assert last is not None
                raise last
        except trio.TooSlowError:
            raise SourceUnavailable("WB101", f"PostgreSQL at {address} does not answer within {CONNECT_TIMEOUT_S:g} s") from None

    @property
    def server_version(self) -> int:
        """As libpq tells it: 180006 for 18.6."""
        return self.pgconn.server_version

    async def query(self, sql: str, params: Sequence[str | int | None] = ()) -> list[tuple[str | None, ...]]:
        """Rows of one statement, every value as text. `$1` and so on stand for `params`, not on replication connections.

        Raises PostgresError when it is refused, SourceUnavailable when the connection ends or nothing comes for a minute.
        """
        try:
            with trio.fail_after(QUERY_TIMEOUT_S):
                if params:
                    values = [None if p is None else str(p).encode() for p in params]
                    self.pgconn.send_query_params(sql.encode(), values)
                else:
                    self.pgconn.send_query(sql.encode())
                results = await drive(generators.execute(self.pgconn), self.pgconn.socket)
        except trio.TooSlowError:
            self.close()
            raise SourceUnavailable("WB102", f"PostgreSQL at {self.address} has not answered a query for a minute") from None
        except psycopg.OperationalError as exc:
            self.close()
            raise self.lost(exc) from exc
        except BaseException:
            self.close()
            raise
        for result in results:
            self.check(result)
        last = results[-1]
        return [
            tuple(_decoded(last.get_value(row, column)) for column in range(last.nfields)) for row in range(last.ntuples)
        ]

    def check(self, result: pq.abc.PGresult) -> None:
        """Raise for a result that is an error."""
        if result.status != pq.ExecStatus.FATAL_ERROR:
            return
        field: Callable[[int], str] = lambda code: _decoded(result.error_field(code)) or ""  # noqa: E731
        sqlstate, message = field(pq.DiagnosticField.SQLSTATE), field(pq.DiagnosticField.MESSAGE_PRIMARY)
        if not sqlstate or sqlstate.startswith(_PASSING):
            self.close()
            raise SourceUnavailable(
                "WB102", f"connection to PostgreSQL {self.address} lost",
                said=f"{sqlstate} {message}".strip() or _decoded(result.error_message) or "",
            )  # fmt: skip
        raise PostgresError(
            sqlstate, message, field(pq.DiagnosticField.MESSAGE_DETAIL), field(pq.DiagnosticField.MESSAGE_HINT)
        )

    def lost(self, exc: BaseException | None = None) -> SourceUnavailable:
        """The error for a connection that has ended."""
        said = str(exc).strip() if exc else (_decoded(self.pgconn.error_message) or "").strip()
        return SourceUnavailable("WB102", f"connection to PostgreSQL {self.address} lost", said=said)

    def close(self) -> None:
        """End the connection; safe to call again, and after a cancelled query."""
        with suppress(psycopg.OperationalError):  # libpq has closed its socket already
            trio.lowlevel.notify_closing(self.pgconn.socket)
        self.pgconn.finish()

    def _on_notice(self, result: pq.abc.PGresult) -> None:
        field: Callable[[int], str] = lambda code: _decoded(result.error_field(code)) or ""  # noqa: E731
        self.notices.append(
            Notice(
                field(pq.DiagnosticField.SEVERITY_NONLOCALIZED),
                field(pq.DiagnosticField.SQLSTATE),
                field(pq.DiagnosticField.MESSAGE_PRIMARY),
            )
        )


async def drive_connect(generator: Generator[tuple[int, Wait], Ready, T]) -> T:
    """Run one of psycopg's connecting generators: it says on which socket it waits for what, trio does the waiting."""
    try:
        sock, wanted = next(generator)
        while True:
            sock, wanted = generator.send(await _wait(sock, wanted))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def drive(generator: Generator[Wait, Ready, T], sock: int) -> T:
    """Run one of psycopg's other generators, on a socket that does not change."""
    await trio.lowlevel.checkpoint()
    try:
        wanted = next(generator)
        while True:
            wanted = generator.send(await _wait(sock, wanted))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def _wait(sock: int, wanted: Wait) -> Ready:
    if wanted == Wait.R:
        await trio.lowlevel.wait_readable(sock)
        return Ready.R
    if wanted == Wait.W:
        await trio.lowlevel.wait_writable(sock)
        return Ready.W
    ready = Ready(0)

    async def wait_for(waiting: Callable[[int], Awaitable[None]], state: Ready) -> None:
        nonlocal ready
        await waiting(sock)
        ready |= state
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for, trio.lowlevel.wait_readable, Ready.R)
        nursery.start_soon(wait_for, trio.lowlevel.wait_writable, Ready.W)
    return ready


async def _attempts(words: dict[str, Any], address: str) -> list[dict[str, Any]]:
    """One set of words for each host and address to try, in order: libpq would block while it resolves names."""
    hosts = str(words.get("host") or "").split(",")
    ports = str(words.get("port") or "").split(",")
    if words.get("hostaddr"):
        return [words]
    found: list[dict[str, Any]] = []
    failures: list[str] = []
    for i, host in enumerate(hosts):
        port = ports[i] if i < len(ports) else ports[-1]
        attempt = {**words, "host": host, "port": port}
        if not host or host.startswith(("/", "@")):  # a socket's folder
            found.append(attempt)
            continue
        try:
            resolved = await trio.socket.getaddrinfo(host, port or 5432, type=trio.socket.SOCK_STREAM)
        except OSError as exc:
            failures.append(f"{host}: {exc.strerror or exc}")
            continue
        addresses = dict.fromkeys(str(entry[4][0]) for entry in resolved)
        found += [{**attempt, "hostaddr": one} for one in addresses]
    if not found:
        raise SourceUnavailable("WB101", f"PostgreSQL at {address} cannot be found", said="; ".join(failures))
    return found


def _address(words: dict[str, Any]) -> str:
    host, port = str(words.get("host") or "localhost"), str(words.get("port") or 5432)
    return f"{host}:{port}/{words.get('dbname') or words.get('user') or ''}"


_REFUSALS = (
    ("password authentication failed", "set POSTGRES_BRIDGE_PASSWORD (or the one in DATABASE_URL) to the role's password"),
    ("no password supplied", "set POSTGRES_BRIDGE_PASSWORD, or DATABASE_URL with a password"),
    ("no pg_hba.conf entry", "add a line for this host, database and user to pg_hba.conf, then SELECT pg_reload_conf()"),
    ("does not exist", "set PG_DB and POSTGRES_BRIDGE_USER, or DATABASE_URL, to what is there"),
    ("wal sender", "ALTER ROLE the_role REPLICATION;  -- RDS: GRANT rds_replication TO the_role;"),
    ("walsender", "ALTER ROLE the_role REPLICATION;  -- RDS: GRANT rds_replication TO the_role;"),
    ("replication role", "ALTER ROLE the_role REPLICATION;  -- RDS: GRANT rds_replication TO the_role;"),
    ("is not permitted to log in", "ALTER ROLE the_role LOGIN;"),
)


def _connect_error(exc: BaseException, address: str) -> SourceUnavailable:
    said = " ".join(str(exc).split())
    if "FATAL" in said:
        for words, fix in _REFUSALS:
            if words in said.lower():
                return SourceRefused("WB103", f"PostgreSQL at {address} does not let the bridge in", said=said, fix=fix)
    return SourceUnavailable(
        "WB101", f"cannot connect to PostgreSQL at {address}", said=said,
        fix="start it, or set PG_HOST and PG_PORT (or DATABASE_URL) to where it is",
    )  # fmt: skip


def _decoded(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")
