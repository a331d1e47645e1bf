"""One connection to PostgreSQL: psycopg's I/O-free generators and libpq, driven by trio. TLS is libpq's."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import psycopg
import trio
from psycopg import conninfo, generators, pq
from psycopg.waiting import Ready, Wait

from actors.clients.postgres.connecting import connecting, sqlstate_of
from actors.clients.postgres.password_command import CommandFailed, read_password
from actors.clients.postgres.pooling import loses_sessions
from actors.clients.postgres.session import PATIENT_SENDER, session_settings, setting_statement
from actors.errors import Fatal, SourceUnavailable
from actors.settings.config import PostgresConfig, PostgresNames
from actors.telemetry.log import mask
from actors.wire.text_encoding import UTF8, TextEncoding, encoding_of

T = TypeVar("T")
CONNECT_TIMEOUT_S = 10.0
QUERY_TIMEOUT_S = 60.0
CANCEL_TIMEOUT_S = 1.0
_DEFAULTS = {
    # notice within half a minute a peer that vanished: while idle, and while sent data is not acknowledged
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
ENDING = ("08", "57P", "25P03", "25P04")
"""SQLSTATEs with which the session ends: connection, shutdown, timeouts of the session or of its transaction."""
PASSING = ("40", "53000", "53100", "53200", "53300", "55P03", "57")
"""SQLSTATEs of statements that may succeed later: conflicts, resources, locks, operators. Not 53400, a configured limit.

https://www.postgresql.org/docs/18/errcodes-appendix.html
"""
IF_IT_LASTS = "nothing if it passes: it is tried again every 5 s; if it lasts, free what PostgreSQL's words name"
"""What to do after one of them."""
_KEEP_SESSIONS: set[str] = set()
"""Addresses of poolers that were found to keep sessions: not tried again at each connect."""


class Notice(NamedTuple):
    """A NoticeResponse."""

    severity: str
    sqlstate: str
    message: str


class PostgresError(Fatal):
    """PostgreSQL refused a statement. The caller interprets the error; if none does, it ends the process."""

    def __init__(self, sqlstate: str, message: str, detail: str = "", hint: str = "", context: str = "") -> None:
        said = f"{sqlstate} {message}" + (f": {detail}" if detail else "")
        super().__init__("WB100", "PostgreSQL refused a statement", said=said, fix=hint)
        self.sqlstate, self.message, self.detail, self.hint, self.context = sqlstate, message, detail, hint, context


class SourceRefused(SourceUnavailable):
    """PostgreSQL does not let this role in. Fatal at the start; later the bridge waits until this is fixed."""


class PgConnection:
    """An open connection for one task at a time.

    A query that is cancelled or takes too long is cancelled on the server and ends the connection, since the late reply would
    be read as the next query's.
    """

    def __init__(self, connection: pq.abc.PGconn, address: str, config: PostgresConfig, encoding: TextEncoding = UTF8) -> None:
        self.pgconn = connection
        self.encoding = encoding
        self.address = address
        self.config = config
        """Leads to this server again."""
        self.notices: list[Notice] = []
        self.socket = connection.socket
        self._closed = False
        connection.notice_handler = self._on_notice

    @classmethod
    async def connect(
        cls, config: PostgresConfig, *, application_name: str, replication: bool = False, to_replica: bool = False
    ) -> PgConnection:
        """Connect to the first host that answers, 10 s each, and begin the session.

        `to_replica` is for a database that is written: its text is UTF-8 in any case, and its role may be set by its
        administrator. Raises SourceUnavailable, or SourceRefused for credentials and for a pooler that keeps no sessions.
        """
        open_one = partial(cls._open, config, application_name, replication=replication)
        connection = await open_one()
        try:
            await connection._begin_session(open_one, to_replica=to_replica)
            if replication:
                await connection.query(PATIENT_SENDER)
        except BaseException:
            connection.close()
            raise
        return connection

    @classmethod
    async def _open(cls, config: PostgresConfig, application_name: str, *, replication: bool) -> PgConnection:
        latest = config.latest()
        mask(latest.file_secrets)
        words = {**_DEFAULTS, **conninfo.conninfo_to_dict(latest.conninfo)}
        words |= {"application_name": application_name, "client_encoding": "UTF8"}
        if replication:
            words["replication"] = "database"
        address = address_of(words)
        if latest.password_command:
            words["password"] = await _password(latest.password_command, address)
        error: SourceUnavailable | None = None
        for attempt in await _attempts(words, address, latest.names):
            try:
                with trio.fail_after(CONNECT_TIMEOUT_S):
                    made = await drive_connect(connecting(conninfo.make_conninfo("", **attempt)))
                    return cls(made, address, _to_the_same(made, config))
            except trio.TooSlowError:
                error = SourceUnavailable(
                    "WB101", f"PostgreSQL at {address} does not answer within {CONNECT_TIMEOUT_S:g} s",
                    fix="see that address and port are right, and that no firewall drops what is sent to them",
                )  # fmt: skip
            except psycopg.OperationalError as exc:
                error = connect_error(exc, address, str(words.get("password") or ""), latest.names)
        assert error is not None, "there is always an attempt"
        raise error

    async def _begin_session(self, open_another: Callable[[], Awaitable[PgConnection]], *, to_replica: bool) -> None:
        """Set what every session sets, unless it would be set for others. Raises SourceRefused."""
        encoding = UTF8 if to_replica else encoding_of(self.server_encoding)
        settings = session_settings(self.server_version, client_encoding=encoding.client_encoding, keep_role=to_replica)
        if not await self.query(setting_statement(settings, process_id=self.backend_pid), timeout_s=CONNECT_TIMEOUT_S):
            if self.address not in _KEEP_SESSIONS:
                if await loses_sessions(self, open_another):
                    raise SourceRefused(
                        "WB119", f"a transaction pooler answers at {self.address}, not PostgreSQL itself",
                        means="settings, prepared statements and locks do not stay with a session there",
                        fix="give PostgreSQL's own address and port, often 5432: PG_HOST and PG_PORT, DATABASE_URL, or --to",
                    )  # fmt: skip
                _KEEP_SESSIONS.add(self.address)
            await self.query(setting_statement(settings), timeout_s=CONNECT_TIMEOUT_S)
        self.encoding = encoding

    @property
    def server_version(self) -> int:
        """The version as libpq reports it: 180006 for 18.6."""
        return self.pgconn.server_version

    @property
    def is_standby(self) -> bool:
        """Whether the server is in recovery, as it says itself whenever that changes."""
        return self.pgconn.parameter_status(b"in_hot_standby") == b"on"

    @property
    def server_encoding(self) -> str:
        """The database's encoding, by PostgreSQL's name."""
        return (self.pgconn.parameter_status(b"server_encoding") or b"UTF8").decode()

    @property
    def database(self) -> str:
        """The name of the database."""
        return self.encoding.decode(self.pgconn.db)

    @property
    def backend_pid(self) -> int:
        """The server's process id, unless a pooler in between has made up a number."""
        return self.pgconn.backend_pid

    async def query(
        self, sql: str, params: Sequence[str | int | None] = (), *, timeout_s: float = QUERY_TIMEOUT_S
    ) -> list[tuple[str | None, ...]]:
        """Return the rows of the last statement that has columns, every value as text.

        `$1` and so on stand for `params`, which replication connections do not support. Several statements, only without
        params, are one transaction. Raises PostgresError when a statement is refused, SourceUnavailable when the connection
        ends or no reply comes within `timeout_s`.
        """
        statement = self.encoded(sql)
        values = [None if p is None else self.encoded(str(p)) for p in params]
        try:
            with trio.fail_after(timeout_s):
                if values:
                    self.pgconn.send_query_params(statement, values)
                else:
                    self.pgconn.send_query(statement)
                results = await drive(generators.execute(self.pgconn), self.socket)
        except trio.TooSlowError:
            await self.abandon()
            raise SourceUnavailable(
                "WB102", f"PostgreSQL at {self.address} has not answered a query within {timeout_s:g} s"
            ) from None
        except (psycopg.Error, trio.ClosedResourceError) as exc:
            raise self.lost(exc) from exc
        except BaseException:
            await self.abandon()
            raise
        for result in results:
            self.check(result)
        last = next((result for result in reversed(results) if result.nfields), results[-1])
        return [
            tuple(self._value(last.get_value(row, column)) for column in range(last.nfields)) for row in range(last.ntuples)
        ]

    async def blocks(self, sql: str, rows_max: int) -> AsyncGenerator[pq.abc.PGresult]:
        """Yield a query's rows as libpq results of up to `rows_max` each. Raises PostgresError or SourceUnavailable."""
        pgconn = self.pgconn
        try:
            pgconn.send_query(self.encoded(sql))
            pgconn.set_chunked_rows_mode(rows_max)
            while True:
                while pgconn.flush():
                    await trio.lowlevel.wait_writable(self.socket)
                if pgconn.is_busy():
                    await trio.lowlevel.wait_readable(self.socket)
                    pgconn.consume_input()
                    continue
                result = pgconn.get_result()
                if result is None:
                    return
                self.check(result)
                if result.ntuples:
                    await trio.lowlevel.checkpoint()  # rows may come faster than they are used: let other tasks run
                    yield result
        except (psycopg.Error, trio.ClosedResourceError) as exc:
            raise self.lost(exc) from exc

    def check(self, result: pq.abc.PGresult) -> None:
        """Raise if a result is an error: SourceUnavailable if the error may pass by itself, else PostgresError."""
        if result.status != pq.ExecStatus.FATAL_ERROR:
            return
        field: Callable[[int], str] = lambda code: self.encoding.decode(result.error_field(code) or b"")  # noqa: E731
        sqlstate, message = field(pq.DiagnosticField.SQLSTATE), field(pq.DiagnosticField.MESSAGE_PRIMARY)
        said = f"{sqlstate} {message}".strip() or self.encoding.decode(result.error_message)
        if not sqlstate or sqlstate.startswith(ENDING):
            self.close()
            raise SourceUnavailable("WB102", f"connection to PostgreSQL {self.address} lost", said=said)
        if sqlstate.startswith(PASSING):
            raise SourceUnavailable("WB118", f"PostgreSQL {self.address} cannot do this now", said=said, fix=IF_IT_LASTS)
        detail, hint = field(pq.DiagnosticField.MESSAGE_DETAIL), field(pq.DiagnosticField.MESSAGE_HINT)
        raise PostgresError(sqlstate, message, detail, hint, field(pq.DiagnosticField.CONTEXT))

    def lost(self, exc: BaseException | None = None) -> SourceUnavailable:
        """Close the connection and return the error that says so."""
        said = str(exc) if exc else self.encoding.decode(self.pgconn.error_message)
        self.close()
        return SourceUnavailable("WB102", f"connection to PostgreSQL {self.address} lost", said=" ".join(said.split()))

    def close(self) -> None:
        """Close the connection; safe to call twice and after a cancelled query. A waiting task gets SourceUnavailable."""
        if not self._closed:
            self._closed = True
            # even if libpq has closed the socket already: nothing else would wake the tasks that wait for it
            trio.lowlevel.notify_closing(self.socket)
            self.pgconn.finish()

    async def abandon(self) -> None:
        """Cancel the query and close the connection: otherwise the server continues, even while waiting for a lock."""
        with trio.move_on_after(CANCEL_TIMEOUT_S) as deadline:
            deadline.shield = True
            try:
                cancelling = self.pgconn.cancel_conn()
                cancelling.start()
                await drive_connect(generators.cancel(cancelling))
            except psycopg.Error:
                pass  # the connection is closed in any case
        self.close()

    def encoded(self, text: str) -> bytes:
        """Return a statement or value as the server reads it. Raises PostgresError, as the server would."""
        try:
            return self.encoding.encode(text)
        except UnicodeEncodeError as exc:
            character = exc.object[exc.start]
            raise PostgresError("22P05", f"character {character!r} has no equivalent in encoding {self.encoding.name}") from exc

    def _value(self, value: bytes | None) -> str | None:
        return None if value is None else self.encoding.decode(value)

    def _on_notice(self, result: pq.abc.PGresult) -> None:
        field: Callable[[int], str] = lambda code: self.encoding.decode(result.error_field(code) or b"")  # noqa: E731
        self.notices.append(
            Notice(
                field(pq.DiagnosticField.SEVERITY_NONLOCALIZED),
                field(pq.DiagnosticField.SQLSTATE),
                field(pq.DiagnosticField.MESSAGE_PRIMARY),
            )
        )


async def drive_connect(generator: Generator[tuple[int, Wait], Ready, T]) -> T:
    """Run one of psycopg's connecting generators: it yields the socket and what to wait for, and trio waits."""
    try:
        sock, wanted = next(generator)
        while True:
            sock, wanted = generator.send(await _wait(sock, wanted))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def drive(generator: Generator[Wait, Ready, T], sock: int) -> T:
    """Run one of psycopg's other generators, whose socket does not change."""
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
    # a query larger than the socket buffer: PostgreSQL may send before it has read all of it
    with trio.move_on_after(0.05):
        await trio.lowlevel.wait_writable(sock)
    return Ready.RW


async def _attempts(words: dict[str, Any], address: str, names: PostgresNames) -> list[dict[str, Any]]:
    """Return one set of words per host address to try, in order: libpq itself would block while resolving names."""
    hosts = str(words.get("host") or "").split(",")
    ports = str(words.get("port") or "").split(",")
    if words.get("hostaddr"):
        return [words]
    prefer_standby = words.get("target_session_attrs") == "prefer-standby"
    if prefer_standby:  # given one host at a time, libpq would accept the first
        words = {**words, "target_session_attrs": "any"}
    found: list[dict[str, Any]] = []
    failures: list[str] = []
    for i, host in enumerate(hosts):
        port = ports[i] if i < len(ports) else ports[-1]
        attempt = {**words, "host": host, "port": port}
        if not host or host.startswith(("/", "@")):  # a folder of Unix sockets
            found.append(attempt)
            continue
        try:
            resolved = await trio.socket.getaddrinfo(host, port or 5432, type=trio.socket.SOCK_STREAM)
        except OSError as exc:
            failures.append(f"{host}: {exc.strerror or exc}")
            continue
        addresses = dict.fromkeys(str(entry[4][0]) for entry in resolved)
        found += [{**attempt, "hostaddr": found_address} for found_address in addresses]
    if not found:
        raise SourceUnavailable(
            "WB101", f"PostgreSQL at {address} cannot be found", said="; ".join(failures),
            fix=f"set {names.address} to a name that this machine knows",
        )  # fmt: skip
    if words.get("load_balance_hosts") == "random":
        random.shuffle(found)
    return [{**attempt, "target_session_attrs": "standby"} for attempt in found] + found if prefer_standby else found


def _to_the_same(made: pq.abc.PGconn, config: PostgresConfig) -> PostgresConfig:
    """Return what leads to the server that has answered: of several hosts, and of a name's several addresses, to that one."""
    words: dict[str, str | None] = {
        "host": made.host.decode(), "hostaddr": made.hostaddr.decode() or None, "port": made.port.decode(),
        "target_session_attrs": None, "load_balance_hosts": None,
    }  # fmt: skip

    def led(given: PostgresConfig) -> PostgresConfig:
        kept = {**conninfo.conninfo_to_dict(given.conninfo), **words}
        return replace(given, conninfo=conninfo.make_conninfo("", **kept))

    found = led(config)
    return replace(found, renew=lambda: led(config.latest())) if config.renew is not None else found


async def _password(command: tuple[str, ...], address: str) -> str:
    """Return what the command prints. Raises SourceRefused, which never has that in it."""
    try:
        return await read_password(command)
    except CommandFailed as exc:
        raise SourceRefused(
            "WB139", f"no password for PostgreSQL at {address}: POSTGRES_BRIDGE_PASSWORD_COMMAND {command[0]} {exc.what}",
            said=exc.said, means="no connection was tried",
            fix="run the command as the bridge's user: it must print the password, and nothing else, and exit with 0",
        ) from None  # fmt: skip


def address_of(words: Mapping[str, Any]) -> str:
    """Where a connection goes, by libpq's keywords: `host:port/database`."""
    host, port = str(words.get("host") or "localhost"), str(words.get("port") or 5432)
    return f"{host}:{port}/{words.get('dbname') or words.get('user') or ''}"


PEER = (
    "this line of pg_hba.conf takes only the system user of the role's name: connect over TCP with a password "
    "(127.0.0.1 for the host in {names.address}), or map the user in pg_ident.conf"
)
NO_DATABASE = "set {names.database} to a database that exists; in a URL it is the last word (postgresql://host/NAME)"
_REFUSALS = (
    ("password authentication failed", "set {names.password} to the role's password"),
    ("no password supplied", "set {names.password} to the role's password"),
    ("certificate authentication failed", "sslcert, sslkey: a certificate whose common name is the role's"),
    ("pg_hba.conf rejects", "change the reject line for this host, database and user in pg_hba.conf, or use TLS: sslmode"),
    ("no pg_hba.conf entry", "add a line for this host, database and user to pg_hba.conf, then SELECT pg_reload_conf()"),
    ("peer authentication failed", PEER),
    ("ident authentication failed", PEER),
    ("does not exist", "set {names.user} to a role that exists, and {names.database} to a database that does"),
    ("wal sender", "ALTER ROLE the_role REPLICATION;  -- RDS: GRANT rds_replication TO the_role;"),
    ("walsender", "ALTER ROLE the_role REPLICATION;  -- RDS: GRANT rds_replication TO the_role;"),
    ("replication role", "ALTER ROLE the_role REPLICATION;  -- RDS: GRANT rds_replication TO the_role;"),
    ("is not permitted to log in", "ALTER ROLE the_role LOGIN;"),
    ("startup parameter", "a connection pooler is in between: give PostgreSQL's own address and port, often 5432"),
)
_REFUSED_STATES = {
    "28P01": "set {names.password} to the role's password",
    "28000": "set {names.user} to a role that exists and may log in; and add a line for this host, "
    "database and user to pg_hba.conf",
    "42501": "ALTER ROLE the_role REPLICATION;  -- RDS: GRANT rds_replication TO the_role; or: GRANT CONNECT ON DATABASE",
}
"""Fixes by SQLSTATE, for servers whose words are in another language."""


def connect_error(exc: BaseException, address: str, password: str, names: PostgresNames) -> SourceUnavailable:
    """Return the error for what libpq said about a failed connection; `names` are the settings that its fix speaks of."""
    said = " ".join(str(exc).split())
    if password:
        said = said.replace(password, "********")
    sqlstate = sqlstate_of(str(exc))
    if sqlstate == "3D000" or re.search(r'database ".*" does not exist', said):
        return _not_let_in(address, said, NO_DATABASE.format(names=names))
    if sqlstate or "FATAL" in said or "no password supplied" in said:
        for words, fix in _REFUSALS:
            if words in said.lower():
                return _not_let_in(address, said, fix.format(names=names))
    if "does not support SSL" in said:
        return SourceRefused(
            "WB122", f"PostgreSQL at {address} has no TLS", said=said,
            means="sslmode demands it: nothing is sent in plain text",
            fix="in PostgreSQL: ssl = on, with ssl_cert_file and ssl_key_file; or, if you trust the network, sslmode=prefer",
        )  # fmt: skip
    if re.search(r"certificate|SSL error|private key", said):
        return SourceRefused(
            "WB122", f"no trusted TLS connection to PostgreSQL at {address}", said=said,
            means="nothing is sent to a server whose identity is not proven",
            fix="sslrootcert: the authority that signed the server's certificate; the host: a name in that certificate; "
            "sslcert and sslkey: the bridge's certificate, if the server asks for one",
        )  # fmt: skip
    if sqlstate in _REFUSED_STATES:
        return _not_let_in(address, said, _REFUSED_STATES[sqlstate].format(names=names))
    return SourceUnavailable(
        "WB101", f"cannot connect to PostgreSQL at {address}", said=said,
        fix=f"start it, or set {names.address} to where it is",
    )  # fmt: skip


def _not_let_in(address: str, said: str, fix: str) -> SourceRefused:
    return SourceRefused("WB103", f"PostgreSQL at {address} does not let the bridge in", said=said, fix=fix)
