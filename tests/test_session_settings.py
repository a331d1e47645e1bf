"""No setting of a server, database, role or environment changes what is read, or ends a session of the bridge or the mirror."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import trio

from actors.clients.postgres.connection import PgConnection, SourceRefused
from actors.clients.postgres.session import PINNED, SINCE
from actors.embedded import process as server_process
from actors.embedded.nats import NatsServer
from actors.errors import SourceUnavailable
from actors.settings.config import PostgresConfig
from tests.conftest import MakeBridge, MakePostgres
from tests.mirrors import MirrorProcess
from tests.servers import Database, wait_for_events
from tests.snapshots import take

BOTH = pytest.mark.parametrize("server", ["database", "database15"])

HARMLESS = """
application_name client_encoding
default_text_search_config icu_validation_level lc_messages lc_numeric lc_time timezone_abbreviations xmlbinary
dynamic_library_path extension_control_path extension_destdir local_preload_libraries session_preload_libraries output_plugin_libraries
check_function_bodies createrole_self_grant default_table_access_method default_tablespace default_toast_compression event_triggers
gin_pending_list_limit restrict_nonsystem_relation_kind row_security session_replication_role temp_tablespaces
transaction_deferrable transaction_isolation transaction_read_only
md5_password_warnings password_encryption scram_iterations
client_connection_check_interval tcp_keepalives_count tcp_keepalives_idle tcp_keepalives_interval tcp_user_timeout
allow_in_place_tablespaces allow_system_table_mods backtrace_functions debug_discard_caches debug_logical_replication_streaming
debug_parallel_query force_parallel_mode ignore_checksum_failure ignore_system_indexes post_auth_delay trace_notify trace_sort
wal_consistency_checking zero_damaged_pages deadlock_timeout
constraint_exclusion cursor_tuple_fraction default_statistics_target from_collapse_limit join_collapse_limit plan_cache_mode
recursive_worktable_factor effective_cache_size random_page_cost seq_page_cost
min_parallel_index_scan_size min_parallel_table_scan_size parallel_setup_cost parallel_tuple_cost parallel_leader_participation
update_process_title compute_query_id stats_fetch_consistency
temp_file_limit file_copy_method backend_flush_after effective_io_concurrency io_combine_limit maintenance_io_concurrency
hash_mem_multiplier logical_decoding_work_mem maintenance_work_mem max_stack_depth temp_buffers work_mem
max_parallel_maintenance_workers max_parallel_workers max_parallel_workers_per_gather
backslash_quote escape_string_warning lo_compat_privileges synchronize_seqscans
commit_delay commit_siblings synchronous_commit wal_compression wal_init_zero wal_recycle wal_skip_threshold
"""
"""What neither changes a value's text nor the meaning or end of our statements: performance, logging, defaults of new objects,
rights that snapshots check by themselves (row_security), what only a superuser may set, and damaged pages, which are his."""
HARMLESS_KINDS = ("log_", "debug_p", "cpu_", "enable_", "geqo", "jit", "track_", "vacuum_")


@BOTH
def test_every_setting_of_a_session_is_pinned_or_known_to_be_harmless(server: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(server)
    rows = database.execute(
        "SELECT lower(name) FROM pg_settings WHERE context IN ('user', 'superuser', 'backend', 'superuser-backend')"
        " AND name NOT LIKE '%.%'"
    )
    decided = PINNED.keys() | SINCE.keys() | set(HARMLESS.split()) | {"wal_sender_timeout"}
    undecided = {name for (name,) in rows} - decided
    assert {name for name in undecided if not name.startswith(HARMLESS_KINDS)} == set()


HOSTILE = {
    "datestyle": "German", "intervalstyle": "iso_8601", "timezone": "Asia/Tokyo", "bytea_output": "escape", "extra_float_digits": "0",
    "quote_all_identifiers": "on", "search_path": "nowhere", "array_nulls": "off", "xmloption": "document",
    "standard_conforming_strings": "off", "transform_null_equals": "on", "gin_fuzzy_search_limit": "1", "exit_on_error": "on",
    "statement_timeout": "500ms", "lock_timeout": "1ms", "idle_in_transaction_session_timeout": "500ms",
    "idle_session_timeout": "500ms", "transaction_timeout": "500ms", "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on", "default_transaction_deferrable": "on", "client_min_messages": "error",
    "client_encoding": "SQL_ASCII", "row_security": "off", "session_replication_role": "replica", "wal_sender_timeout": "1s", "role": "odd_other",
}  # fmt: skip


def set_for_role(database: Database, role: str, settings: dict[str, str]) -> None:
    known = {name for (name,) in database.execute("SELECT lower(name) FROM pg_settings")} | {"role"}
    for name in settings.keys() & known:
        database.execute(f"ALTER ROLE {role} SET {name} = '{settings[name]}'")


@pytest.fixture
def odd_role(request: pytest.FixtureRequest) -> Iterator[tuple[Database, str]]:
    """A role that replicates, with every setting as odd as can be, on PostgreSQL 18 and 15; and its URL."""
    database: Database = request.getfixturevalue(request.param)
    role = f"odd_{database.name}"
    database.execute(f"CREATE ROLE odd_other; CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'pw' IN ROLE odd_other")
    set_for_role(database, role, HOSTILE)
    yield database, psycopg.conninfo.make_conninfo(database.dsn, user=role, password="pw")
    database.execute(f"DROP ROLE {role}; DROP ROLE odd_other")


BOTH_ODD = pytest.mark.parametrize("odd_role", ["database", "database15"], indirect=True)


@BOTH_ODD
@pytest.mark.parametrize("replication", [False, True])
def test_whatever_the_role_and_the_environment_have_set(
    odd_role: tuple[Database, str], replication: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, dsn = odd_role
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")  # libpq sends these beside the options, and later than them
    monkeypatch.setenv("PGDATESTYLE", "German")
    # enough for the statement that sets it, and shorter than the sleep below
    monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=500ms")

    async def check() -> None:
        config = PostgresConfig(psycopg.conninfo.make_conninfo(dsn, client_encoding="LATIN1"))
        connection = await PgConnection.connect(config, application_name="test", replication=replication)
        with closing(connection):
            await trio.sleep(0.6)
            found = dict(await connection.query("SELECT lower(name), setting FROM pg_settings"))
            pinned = PINNED | {name: value for name, (_, value) in SINCE.items() if name in found}
            assert {name: found[name] for name in pinned} == pinned
            assert found["client_encoding"] == "UTF8"
            assert found["wal_sender_timeout"] == ("60000" if replication else "1000")
            assert await connection.query("SELECT current_user") == [(f"odd_{database.name}",)]
            await connection.query("BEGIN")
            await connection.query("SELECT pg_sleep(0.6)")
            await trio.sleep(0.6)
            assert await connection.query("SELECT '12.5'::money, '{NULL}'::text[], 'pg_class'::regclass, 'é'") == [
                ("$12.50", "{NULL}", "pg_class", "é")
            ]

    trio.run(check)


@pytest.fixture
def german_locale(server_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A locale whose money reads `1.234,56 €`, for servers that are started from now on."""
    folder = server_folder / "locales"
    folder.mkdir(exist_ok=True)
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", str(folder / "de_DE.utf8")], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"localedef: {made.stderr.decode()}")
    environment = server_process._environment()
    monkeypatch.setattr(server_process, "_environment", lambda: environment | {"LOCPATH": str(folder)})
    return "de_DE.utf8"


SHOWN = """
CREATE TYPE mood AS ENUM ('sad'); CREATE TYPE pair AS (a money, b timestamptz);
CREATE TABLE shown (id int PRIMARY KEY, amount money, amounts money[], two pair, of_table regclass, of_type regtype,
  spans interval, at timestamptz, raw bytea, ratio float8, tags text[]);
CREATE PUBLICATION cdc_pub FOR TABLE shown WHERE (tags @> '{keep}' OR tags IS NULL);
ALTER TABLE shown REPLICA IDENTITY FULL;
"""
ROW = """INSERT INTO shown VALUES ({}, 1234.56::numeric, '{{1234.5}}'::numeric[]::money[], ROW((-7)::money, '2025-12-12 12:00+00'),
  'shown', 'mood', '1 day 2 hours', '2025-12-12 12:00:00.5+00', '\\x00ff', 0.1::float8 + 0.2::float8, '{{keep,NULL}}')"""


def test_a_row_reads_alike_from_snapshot_event_and_replica_whatever_is_set(
    german_locale: str, make_postgres: MakePostgres, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    server = make_postgres()
    source, copy = Database(server, "app"), Database(server, "copy")
    source.execute(SHOWN)
    source.execute(ROW.format(1))
    copy.execute("CREATE TYPE pair AS (a money, b timestamptz)")
    for database in ("app", "copy"):
        source.execute(f"ALTER DATABASE {database} SET lc_monetary = '{german_locale}'")
    assert _money(source) == "1.234,56 €"
    for name, value in HOSTILE.items():
        if name not in ("role", "session_replication_role"):
            source.execute(f"ALTER ROLE postgres SET {name} = '{value}'")
    source.close()
    copy.close()
    make_bridge(source.dsn, nats)
    mirror = MirrorProcess(nats, copy.dsn, tmp_path)
    mirror.start()
    try:
        mirror.wait_live(1)
        with psycopg.connect(server.dsn("app"), autocommit=True, options=_NORMAL) as connection:
            connection.execute(ROW.format(2).encode())
        event = wait_for_events(nats.url, 1)[-1].body["data"]
        (row,) = [row for row in take(nats.url, "shown").rows if row["id"] == 1]
        assert event | {"id": 1} == row
        assert (row["amount"], row["of_table"], row["of_type"]) == ("$1,234.56", "public.shown", "public.mood")
        mirror.assert_equal(source.dsn)
        with psycopg.connect(server.dsn("copy"), options=_NORMAL) as connection:
            amounts = connection.execute("SELECT amount::numeric, (two).a::numeric FROM shown").fetchall()
        assert [tuple(map(float, row)) for row in amounts] == [(1234.56, -7.0)] * 2
    finally:
        mirror.kill()


def test_a_refusal_is_understood_whatever_language_the_server_speaks(german_locale: str, make_postgres: MakePostgres) -> None:
    server = make_postgres(15, lc_messages=german_locale)
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("CREATE ROLE idle PASSWORD 'pw'; CREATE ROLE plain LOGIN PASSWORD 'pw'")
        with pytest.raises(psycopg.errors.DivisionByZero) as spoken:
            admin.execute("SELECT 1 / 0")
    if "Division durch Null" not in str(spoken.value):
        pytest.skip("this PostgreSQL has no German words")

    async def check() -> None:
        for words, sqlstate, fix in (
            ({"password": "wrong"}, "28P01", "POSTGRES_BRIDGE_PASSWORD"),
            ({"user": "nobody"}, "28P01", "POSTGRES_BRIDGE_PASSWORD"),
            ({"user": "idle", "password": "pw"}, "28000", "may log in"),
            ({"user": "plain", "password": "pw"}, "42501", "REPLICATION"),
            ({"dbname": "nowhere"}, "3D000", "PG_DB"),
        ):
            config = PostgresConfig(psycopg.conninfo.make_conninfo(server.dsn(), **words))
            with pytest.raises(SourceRefused, match="WB103") as refusal:
                await PgConnection.connect(config, application_name="test", replication=True)
            assert f"FATAL: {sqlstate}: " in refusal.value.said
            assert "LOCATION" not in refusal.value.said
            assert fix in refusal.value.fix

    trio.run(check)


_NORMAL = " ".join(f"-c {name}={value}" for name, value in {
    "statement_timeout": "0", "transaction_timeout": "0", "idle_session_timeout": "0", "default_transaction_read_only": "off",
    "search_path": "public", "lock_timeout": "0", "idle_in_transaction_session_timeout": "0", "array_nulls": "on",
    "xmloption": "content", "client_encoding": "UTF8", "standard_conforming_strings": "on",
}.items())  # fmt: skip


def _money(database: Database) -> str:
    with database.connect() as connection:
        ((text,),) = connection.execute("SELECT amount::text FROM public.shown").fetchall()
        return str(text)


@pytest.mark.parametrize(
    ("setting", "begin", "then", "code"),
    [
        ("statement_timeout", "", "SELECT pg_sleep(9)", "WB118"),
        ("lock_timeout", "BEGIN", "LOCK TABLE held", "WB118"),
        ("idle_in_transaction_session_timeout", "BEGIN", "SELECT 1", "WB102"),
        ("transaction_timeout", "BEGIN", "SELECT pg_sleep(9)", "WB102"),
        ("idle_session_timeout", "", "SELECT 1", "WB102"),
    ],
)
def test_what_a_timeout_ends_all_the_same_is_tried_again(
    setting: str, begin: str, then: str, code: str, database: Database
) -> None:
    """As where an administrator changes a setting for all sessions with a tool that knows no session's own value."""
    database.execute("CREATE TABLE held (id int)")
    holder = database.connect(autocommit=False)
    holder.execute("LOCK TABLE held")

    async def check() -> None:
        with closing(await PgConnection.connect(PostgresConfig(database.dsn), application_name="test")) as connection:
            await connection.query(f"SET search_path = public; SET {setting} = '50ms'")
            if begin:
                await connection.query(begin)
            await trio.sleep(0.2)
            with pytest.raises(SourceUnavailable) as caught:
                await connection.query(then)
            assert caught.value.code == code

    with closing(holder):
        trio.run(check)
