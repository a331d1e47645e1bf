"""Changes of other kinds than inserts of six columns, each drained from a backlog beside pg_recvlogical."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from bench.bridge import DrainRun, drain
from bench.recvlogical import ReaderRun, run_recvlogical
from bench.servers import Servers
from bench.workload import PUBLICATION, Backlog, written_behind_slot

TPCB_EVENTS = 4
_ROW = "i, 'customer ' || i, 'customer' || i || '@example.org', i % 90, (i % 100000) / 100.0, clock_timestamp()"
_INSERT = f"INSERT INTO kind SELECT {_ROW}{{more}} FROM generate_series($1, $2) AS i"
_UPDATE = "UPDATE kind SET age = age + 1 WHERE id BETWEEN $1 AND $2"
_TABLE = "CREATE TABLE kind (LIKE bench INCLUDING ALL{more})"
_WIDE = ", ".join(f"c{n} int" for n in range(44))
PROCEDURE = """
CREATE OR REPLACE PROCEDURE in_transactions(statement text, total bigint, each bigint) LANGUAGE plpgsql AS $$
DECLARE first bigint := 1;
BEGIN
  WHILE first <= total LOOP
    EXECUTE statement USING first, least(first + each - 1, total);
    COMMIT;
    first := first + each;
  END LOOP;
END $$;
"""


class Load(NamedTuple):
    """One kind of change: what is there before, and a statement for the rows $1 to $2, which is one transaction."""

    statement: str
    table: str = _TABLE.format(more="")
    filled: str = ""
    """The statement that fills the table beforehand, if the changes are no inserts."""
    after_fill: str = ""
    flags: tuple[str, ...] = ()
    each: int = 1_000
    """Rows per transaction."""
    share: int = 1
    """The backlog has so many times fewer rows than others."""
    events: int = 1
    """Events per row."""


_FILLED = Load(_UPDATE, filled=_INSERT.format(more=""))
LOADS: dict[str, Load] = {
    "inserts": Load(_INSERT.format(more="")),
    "--json": Load(_INSERT.format(more=""), flags=("--json",)),
    "--pack 500": Load(_INSERT.format(more=""), flags=("--pack", "500")),
    "UPDATE": _FILLED,
    "UPDATE of the key": _FILLED._replace(statement="UPDATE kind SET id = id + 1000000000 WHERE id BETWEEN $1 AND $2"),
    "UPDATE, FULL": _FILLED._replace(after_fill="ALTER TABLE kind REPLICA IDENTITY FULL;"),
    "UPDATE, unchanged TOAST": Load(
        _UPDATE, _TABLE.format(more=", large text"), _INSERT.format(more=", repeat('v', 3000)"), share=4
    ),
    "DELETE": _FILLED._replace(statement="DELETE FROM kind WHERE id BETWEEN $1 AND $2"),
    "50 columns": Load(_INSERT.format(more=", i + 1" * 44), _TABLE.format(more=f", {_WIDE}"), share=4),
    "10 kB rows": Load(_INSERT.format(more=", repeat('v', 10000)"), _TABLE.format(more=", large text"), share=10),
    "1,000 tables in turn": Load(
        "DO $do$ BEGIN FOR i IN 1 .. 1000 LOOP EXECUTE format("
        "'INSERT INTO kind_%s VALUES (nextval(''kind_ids''), ''customer'', now())', i); END LOOP; END $do$",
        "CREATE SEQUENCE kind_ids; DO $do$ BEGIN FOR i IN 1 .. 1000 LOOP EXECUTE format("
        "'CREATE TABLE kind_%s (id bigint PRIMARY KEY, name text, at timestamptz)', i); END LOOP; END $do$",
    ),
    "TPC-B": Load(
        "WITH account AS (UPDATE kind_accounts SET balance = balance + 1 WHERE id = $1),"
        " teller AS (UPDATE kind_tellers SET balance = balance + 1 WHERE id = 1 + $1 % 10),"
        " branch AS (UPDATE kind_branches SET balance = balance + 1 WHERE id = 1)"
        " INSERT INTO kind_history VALUES ($1, 1 + $1 % 10, 1, $2 - $1, now())",
        "CREATE TABLE kind_accounts (id bigint PRIMARY KEY, branch int, balance int, filler char(84));"
        "CREATE TABLE kind_tellers (LIKE kind_accounts INCLUDING ALL);"
        "CREATE TABLE kind_branches (LIKE kind_accounts INCLUDING ALL);"
        "CREATE TABLE kind_history (account bigint, teller bigint, branch int, delta bigint, at timestamptz);"
        "INSERT INTO kind_accounts SELECT i, 1, 0, '' FROM generate_series(1, 100000) AS i;"
        "INSERT INTO kind_tellers SELECT i, 1, 0, '' FROM generate_series(1, 10) AS i;"
        "INSERT INTO kind_branches VALUES (1, 1, 0, '')",
        each=1, share=4 * TPCB_EVENTS, events=TPCB_EVENTS,
    ),
}  # fmt: skip


@dataclass(slots=True)
class KindResults:
    """Rounds of one load: pg_recvlogical, then the bridge."""

    events: int
    reader: list[ReaderRun] = field(default_factory=list)
    bridge: list[DrainRun] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The bridge's speed by pg_recvlogical's: the median over the rounds, each compared within itself."""
        pairs = zip(self.bridge, self.reader, strict=True)
        return median(bridge.events_per_s / reader.events_per_s for bridge, reader in pairs)


def run_kind(servers: Servers, load: Load, rows: int, repeat: int) -> KindResults:
    """Drain one load's backlog again and again, by both in turn."""
    with _written(servers, load, rows) as written:
        results = KindResults(written.rows)
        for _ in range(repeat):
            results.reader.append(run_recvlogical(servers, written))
            results.bridge.append(drain(servers, written, "fast", flags=load.flags, is_packed="--pack" in load.flags))
        return results


@contextmanager
def _written(servers: Servers, load: Load, rows: int) -> Iterator[Backlog]:
    """Write a load's backlog into tables of its own, all of which are dropped at the end."""
    rows = max(rows // load.share // load.each, 1) * load.each
    with servers.connect() as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute(PROCEDURE.encode())
        connection.execute(load.table.encode())
        if load.filled:
            connection.execute("CALL in_transactions(%s, %s, %s)", [load.filled, rows, 10_000])
        if load.after_fill:
            connection.execute(load.after_fill.encode())
        found = connection.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^kind(_|$)'").fetchall()
        tables = ", ".join(name for (name,) in found)
        connection.execute(f"ALTER PUBLICATION {PUBLICATION} ADD TABLE {tables}".encode())
        try:
            fill = ("CALL in_transactions(%s, %s, %s)", (load.statement, rows, load.each))
            with written_behind_slot(servers, *fill, events=rows * load.events, each=load.each * load.events) as written:
                yield written
        finally:
            connection.execute(f"DROP TABLE {tables}".encode())
            connection.execute("DROP SEQUENCE IF EXISTS kind_ids")
