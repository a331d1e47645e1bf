"""`walbridge produce`: load on the sample tables, on one ordinary connection."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any

import psycopg
from cyclopts import App, Parameter
from psycopg import conninfo, sql

from actors.clients.postgres.connection import SourceRefused, connect_error
from actors.errors import ConfigError, Fatal
from actors.sample.mixed_load import Counts, MixedLoad
from actors.sample.progress import Work
from actors.sample.rows import COLUMNS, SampleRows
from actors.settings.config import ENV_FILE, PostgresConfig
from actors.settings.resolve import resolve
from actors.settings.setting import no_choice
from actors.wire.sql_names import quoted

Connection = psycopg.Connection[tuple[Any, ...]]
USERS_FOR_ORDERS = 10_000
_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


produce = App(
    name="produce",
    help_epilogue="Examples:\n  walbridge produce bulk 1000\n  walbridge produce mixed --rate 100 --seconds 30\n",
    help_format="plaintext",
    version_flags=[],
    default_parameter=Parameter(show_default=False),
)

Json = Annotated[bool, Parameter(negative="", help="the result as JSON")]
EnvFile = Annotated[Path | None, Parameter(help=ENV_FILE.help(), metavar=ENV_FILE.value)]
Seed = Annotated[str | None, Parameter(help="a number: the same rows each time", metavar="N")]
TableName = Annotated[str, Parameter(help="users, orders or test_types [users]", metavar="TABLE")]


def _producer(seed: str | None, as_json: bool, env_file: Path | None) -> Producer:
    number = None if seed is None else parse_count("--seed", seed, low=0)
    return Producer(resolve({}, os.environ, env_file).postgres, seed=number, as_json=as_json)


@produce.command
def bulk(
    rows: Annotated[str, Parameter(help="how many", allow_leading_hyphen=True)],
    /,
    *,
    table: TableName = "users",
    batch: Annotated[str, Parameter(help="rows per transaction [1000]", metavar="N")] = "1000",
    seed: Seed = None,
    json: Json = False,
    env_file: EnvFile = None,
) -> int:
    """Insert this many rows, as fast as PostgreSQL takes them."""
    return _producer(seed, json, env_file).bulk(rows, table, batch)


@produce.command
def stream(
    *,
    every: Annotated[str, Parameter(help="time from one transaction to the next [1s]", metavar="TIME")] = "1s",
    take: Annotated[str | None, Parameter(help="end after this many transactions [until stopped]", metavar="N")] = None,
    rows: Annotated[str, Parameter(help="rows per transaction [1]", metavar="N")] = "1",
    table: TableName = "users",
    seed: Seed = None,
    json: Json = False,
    env_file: EnvFile = None,
) -> int:
    """Insert rows at a steady pace."""
    return _producer(seed, json, env_file).stream(every, take, rows, table)


@produce.command
def mixed(
    *,
    rate: Annotated[str, Parameter(help="changed rows per second [500]", metavar="N")] = "500",
    seconds: Annotated[str, Parameter(help="how long [60]", metavar="SECONDS")] = "60",
    seed: Seed = None,
    json: Json = False,
    env_file: EnvFile = None,
) -> int:
    """Inserts, updates, changes of keys, deletes and rollbacks on users and orders, in transactions of 1 to 10 changes."""
    return _producer(seed, json, env_file).mixed(rate, seconds)


@produce.command
def crud(*, seed: Seed = None, json: Json = False, env_file: EnvFile = None) -> int:
    """Insert, update and delete one row of test_types: array, matrix, jsonb, numeric."""
    return _producer(seed, json, env_file).crud()


@produce.command
def check(*, json: Json = False, env_file: EnvFile = None) -> int:
    """Connect and count the rows of the sample tables."""
    return _producer(None, json, env_file).check()


def parse_count(name: str, text: str, *, low: int = 1, high: int = 1_000_000_000) -> int:
    """A whole number. Raises ConfigError."""
    if not re.fullmatch(r"\d{1,10}", text) or not low <= int(text) <= high:
        raise ConfigError("WB002", f"{name}: {text!r} is not a whole number; give {low}-{high}")
    return int(text)


def parse_interval_s(name: str, text: str) -> float:
    """`1ms`, `0.5s`, `2m`, or seconds. Raises ConfigError."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)(us|ms|s|m)?", text)
    if match is None:
        raise ConfigError("WB002", f"{name}: {text!r} is not a time; give e.g. 1ms, 0.5s or 2m")
    return float(match[1]) * _UNITS_S[match[2] or "s"]


class Producer:
    """Writes rows to one database; each method is a command and returns its exit code.

    Raises ConfigError for a bad value or missing tables, Fatal when PostgreSQL cannot be reached or refuses.
    """

    def __init__(self, postgres: PostgresConfig, *, seed: int | None = None, as_json: bool = False) -> None:
        self._postgres, self._json = postgres, as_json
        self._samples = SampleRows(seed)

    def bulk(self, rows: str, table: str, batch: str) -> int:
        """Insert `rows` rows by COPY, `batch` rows per transaction."""
        total, each = parse_count("ROWS", rows), parse_count("--batch", batch)
        with self._connection(_known(table)) as connection, Work(f"inserting into {table}", total).shown() as work:
            made = self._samples.rows(table, self._user_ids(connection, table))
            while work.counts.inserted < total:
                self._insert(connection, table, list(islice(made, min(each, total - work.counts.inserted))), work.counts)
                work.show(work.counts.inserted)
        return self._report(work)

    def stream(self, every: str, take: str | None, rows: str, table: str) -> int:
        """Insert `rows` rows in each interval of `every`, `take` times or until interrupted. A late load catches up."""
        pause_s, each = parse_interval_s("--every", every), parse_count("--rows", rows)
        times = None if take is None else parse_count("--take", take)
        with self._connection(_known(table)) as connection, Work(f"inserting into {table}", times).shown() as work:
            made = self._samples.rows(table, self._user_ids(connection, table))
            for number in count() if times is None else range(times):
                work.wait_until(work.started + number * pause_s)
                self._insert(connection, table, list(islice(made, each)), work.counts)
                work.show(number + 1)
        return self._report(work)

    def mixed(self, rate: str, seconds: str) -> int:
        """Change rows in every way, `rate` per second, for `seconds`."""
        per_second, long = parse_count("--rate", rate, high=1_000_000), parse_count("--seconds", seconds, high=10_000_000)
        total = per_second * long
        with self._connection("users", "orders") as connection, Work("changing users, orders", total).shown() as work:
            load = MixedLoad(connection, self._samples, work.counts)
            while work.seconds < long:
                done = work.counts.changes + work.counts.undone
                if done >= total:
                    break
                work.wait_until(min(work.started + done / per_second, work.started + long))
                load.transaction()
                work.show(min(done, total))
        return self._report(work)

    def crud(self) -> int:
        """One row of test_types: inserted, updated, deleted, each in a transaction of its own."""
        columns = COLUMNS["test_types"]
        steps: list[tuple[str, str]] = []
        with self._connection("test_types") as connection:
            insert = sql.SQL("INSERT INTO public.test_types AS t ({}) VALUES ({}) RETURNING id, row_to_json(t)::text").format(
                sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join(sql.Placeholder() * len(columns))
            )
            key, row = _one(connection.execute(insert, self._samples.test_type()))
            steps.append(("inserted", row))
            _, row = _one(connection.execute(
                "UPDATE public.test_types AS t SET price = price + 0.0001, tags = tags || '{updated}',"
                """ matrix = '{{7,8,9},{1,2,3}}', metadata = metadata || '{"updated": true}'"""
                " WHERE id = %s RETURNING id, row_to_json(t)::text", [key]
            ))  # fmt: skip
            steps.append(("updated", row))
            _, row = _one(connection.execute(
                "DELETE FROM public.test_types AS t WHERE id = %s RETURNING id, row_to_json(t)::text", [key]
            ))  # fmt: skip
            steps.append(("deleted", row))
        if self._json:
            print(json.dumps({step: json.loads(row) for step, row in steps}))
        else:
            for step, row in steps:
                print(f"{step:<9} {row}")
        return 0

    def check(self) -> int:
        """Show where we are connected, and how many rows there are."""
        with self._connection(*COLUMNS) as connection:
            version, database, user = _one(
                connection.execute("SELECT current_setting('server_version'), current_database(), current_user")
            )
            counts = {
                table: _one(connection.execute(sql.SQL("SELECT count(*) FROM {}").format(_name(table))))[0] for table in COLUMNS
            }
        if self._json:
            print(json.dumps({"server_version": version, "database": database, "user": user, "rows": counts}))
            return 0
        print(f"PostgreSQL {version}, database {database}, user {user}")
        for table, rows in counts.items():
            print(f"{table:<12}{rows:>14,} rows")
        return 0

    @contextmanager
    def _connection(self, *tables: str) -> Iterator[Connection]:
        """Open a connection to a database that has these tables; PostgreSQL's errors become ours."""
        words: Mapping[str, Any] = conninfo.conninfo_to_dict(self._postgres.conninfo)
        password = str(words.get("password") or "")
        connected = False
        try:
            with psycopg.connect(
                self._postgres.conninfo, autocommit=True, connect_timeout=10, application_name="walbridge produce"
            ) as connection:
                connected = True
                for table in tables:
                    if _one(connection.execute("SELECT to_regclass(%s)", [f"public.{table}"]))[0] is None:
                        raise ConfigError(
                            "WB524", f"no table public.{table} in database {connection.info.dbname}",
                            means="produce writes to the sample tables only, never to yours",
                            fix="walbridge help WB524 shows how to make them; walbridge --embedded has them",
                        )  # fmt: skip
                yield connection
        except psycopg.Error as exc:
            if isinstance(exc.__context__, KeyboardInterrupt):  # the second one, in the middle of something
                raise exc.__context__ from None
            if not connected:
                error = connect_error(exc, _address(words), password, self._postgres.names)
                kind = ConfigError if isinstance(error, SourceRefused) else Fatal  # a command does not wait and try again
                what = error.what.replace("the bridge", str(words.get("user") or "the role"))
                raise kind(error.code, what, said=error.said, means=error.means, fix=error.fix) from exc
            said = " ".join(str(exc).split())
            said = f"{exc.sqlstate or ''} {said.replace(password, '********') if password else said}".strip()
            if isinstance(exc, psycopg.OperationalError) and connection.broken:
                raise Fatal(
                    "WB102", "connection to PostgreSQL lost", said=said, means="what was committed stays",
                    fix="see that it runs: pg_isready; then run the command again",
                ) from exc  # fmt: skip
            raise Fatal("WB100", "PostgreSQL refused a statement", said=said, fix=_fix(exc, words)) from exc

    def _insert(self, connection: Connection, table: str, rows: list[tuple[object, ...]], counts: Counts) -> None:
        columns = sql.SQL(", ").join(map(sql.Identifier, COLUMNS[table]))
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(_name(table), columns)
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)
        counts.inserted += len(rows)
        counts.transactions += 1

    def _user_ids(self, connection: Connection, table: str) -> list[int]:
        """Users to give orders to; a hundred are made if there are none."""
        if table != "orders":
            return []
        select = "SELECT id FROM public.users LIMIT %s"
        found = connection.execute(select, [USERS_FOR_ORDERS]).fetchall()
        if not found:
            self._insert(connection, "users", list(islice(self._samples.rows("users"), 100)), Counts())
            found = connection.execute(select, [USERS_FOR_ORDERS]).fetchall()
        return [key for (key,) in found]

    def _report(self, work: Work) -> int:
        counts, seconds = work.counts, work.seconds
        if self._json:
            result = counts.as_dict() | {"seconds": round(seconds, 3), "changes_per_s": round(counts.changes / seconds, 1)}
            print(json.dumps(result))
        else:
            print(f"{counts} in {seconds:.1f} s, {counts.changes / seconds:,.0f} changes/s")
        return 0


def _address(words: Mapping[str, Any]) -> str:
    return f"{words.get('host') or 'localhost'}:{words.get('port') or 5432}"


def _fix(exc: psycopg.Error, words: Mapping[str, Any]) -> str:
    state = exc.sqlstate or ""
    if state == "42501":
        role = quoted(str(words.get("user") or ""))
        return (
            f"as their owner: GRANT SELECT, INSERT, UPDATE, DELETE ON {', '.join(COLUMNS)} TO {role};\n"
            f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role};"
        )
    if state == "25006":
        return "give the primary's address: this server is read-only"
    if state[:2] in ("22", "23", "42"):
        return "the table differs from the sample table: walbridge help WB524 shows it; or use another database"
    return exc.diag.message_hint or "see PostgreSQL's log at this time"


def _known(table: str) -> str:
    if table not in COLUMNS:
        raise ConfigError("WB002", f"--table: {table!r} {no_choice(table, COLUMNS)}")
    return table


def _name(table: str) -> sql.Identifier:
    return sql.Identifier("public", table)


def _one(cursor: psycopg.Cursor[tuple[Any, ...]]) -> tuple[Any, ...]:
    row = cursor.fetchone()
    assert row is not None, "the statement returns a row"
    return row
