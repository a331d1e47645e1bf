"""The replication stream and slots on trio, against real servers."""

from __future__ import annotations

import hashlib
import itertools
import logging
import struct
import time
from contextlib import closing

import psycopg
import pytest
import trio

from actors import feedback, status_reporter
from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.replication import ReplicationStream, identify_system, open_replication_stream, timeline_history
from actors.clients.postgres.slots import create_slot, drop_slot, slot_health, slot_state
from actors.errors import ConfigError, Fatal, SourceUnavailable
from actors.positions import NO_LSN, Lsn
from actors.settings.config import PostgresConfig
from actors.telemetry.telemetry import Problem
from tests.conftest import MakePostgres
from tests.servers import HANG_S, Database, wait_for

BOTH = pytest.mark.parametrize("server", ["database", "database15"])
WEIRD_NAME = "a.b c*>\",'$JS\\é"
_serial = itertools.count()


def slot_name() -> str:
    return f"slot_{next(_serial)}"


async def connected(dsn: str, *, replication: bool = False) -> PgConnection:
    return await PgConnection.connect(PostgresConfig(dsn), application_name="test", replication=replication)


def execute(dsn: str, statements: str) -> None:
    """On a private server, which may die: each call has a connection of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statements.encode())


async def made_slot(dsn: str) -> str:
    slot = slot_name()
    with closing(await connected(dsn, replication=True)) as connection:
        await create_slot(connection, slot)
    return slot


async def opened(dsn: str, slot: str, publication: str = "p", start_lsn: Lsn = NO_LSN) -> ReplicationStream:
    return await open_replication_stream(
        PostgresConfig(dsn), slot=slot, publication=publication, start_lsn=start_lsn, tables=['"public"."t"']
    )


async def read_on(stream: ReplicationStream) -> None:
    """Read until the stream ends, with an error."""
    while True:
        await stream.read_block(500, 1 << 18)


async def read_rows(stream: ReplicationStream, wanted: int) -> Lsn:
    """Read until so many inserts have come and their transaction has ended; returns its end."""
    rows, end = 0, NO_LSN
    while rows < wanted or not end:
        for message in await stream.read_block(500, 1 << 18):
            if message[:1] == b"w":
                rows += message[25:26] == b"I"
                end = Lsn(struct.unpack_from(">q", message, 35)[0]) if message[25:26] == b"C" else NO_LSN
    assert rows == wanted
    return end


@BOTH
def test_every_row_is_read_in_blocks_within_the_limits(server: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(server)
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION p FOR TABLE t")

    async def check() -> None:
        slot = await made_slot(database.dsn)
        database.execute("INSERT INTO t SELECT i, 'some text ' || i FROM generate_series(1, 300000) i")
        stream = await opened(database.dsn, slot)
        keys: list[int] = []
        while len(keys) < 300_000:
            block = await stream.read_block(500, 100_000)
            assert 1 <= len(block) <= 500
            assert sum(map(len, block[:-1])) < 100_000
            keys += [int(m[38 : 38 + struct.unpack_from(">i", m, 34)[0]]) for m in block if m[25:26] == b"I"]
        assert keys == list(range(1, 300_001))
        await stream.close()

    trio.run(check)


@BOTH
def test_what_is_confirmed_is_not_sent_again_and_the_rest_is(server: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(server)
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")

    async def check() -> None:
        slot = await made_slot(database.dsn)
        database.execute("INSERT INTO t VALUES (1)")
        stream = await opened(database.dsn, slot)
        end = await read_rows(stream, 1)
        await stream.send_status(end, end, end)
        await stream.close()
        with closing(await connected(database.dsn)) as connection:
            state = await slot_state(connection, slot)
            assert state is not None
            assert (state.active, state.confirmed_flush_lsn) == (False, end), "the slot is free when close returns"
        for _ in range(2):
            database.execute("INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t")
        for _ in range(2):
            stream = await opened(database.dsn, slot)
            await read_rows(stream, 2)
            await stream.close()

    trio.run(check)


@BOTH
def test_names_of_any_kind_are_quoted(server: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(server)
    quoted = WEIRD_NAME.replace('"', '""')
    database.execute(f'CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION "{quoted}" FOR TABLE t')

    async def check() -> None:
        slot = await made_slot(database.dsn)
        database.execute("INSERT INTO t VALUES (1)")
        stream = await opened(database.dsn, slot, WEIRD_NAME)
        await read_rows(stream, 1)
        await stream.close()

    trio.run(check)


def test_status_without_reading_keeps_a_blocked_stream_alive(make_postgres: MakePostgres) -> None:
    server = make_postgres(wal_sender_timeout="2s")
    dsn = server.dsn()
    execute(dsn, "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION p FOR TABLE t")

    async def check() -> None:
        slot = await made_slot(dsn)
        # more than buffers hold
        execute(dsn, "INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 50000) i")
        stream = await opened(dsn, slot)
        for _ in range(9):
            await trio.sleep(0.5)
            await stream.send_status(NO_LSN, NO_LSN, NO_LSN)
        await read_rows(stream, 50_000)
        await stream.close()

    trio.run(check)


def test_status_is_sent_while_another_task_waits_for_data(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")

    async def check() -> None:
        slot = await made_slot(database.dsn)
        stream = await opened(database.dsn, slot)
        with trio.fail_after(HANG_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_rows, stream, 1)
                for _ in range(20):
                    async with trio.open_nursery() as senders:  # several at once, too
                        for _ in range(3):
                            senders.start_soon(stream.send_status, NO_LSN, NO_LSN, NO_LSN)
                await trio.to_thread.run_sync(database.execute, "INSERT INTO t VALUES (1)")
        await stream.close()

    trio.run(check)


def test_a_cancelled_read_has_taken_nothing(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")

    async def check() -> None:
        slot = await made_slot(database.dsn)
        stream = await opened(database.dsn, slot)
        database.execute("INSERT INTO t SELECT generate_series(1, 20000)")
        keys: list[bytes] = []
        for patience_s in itertools.cycle((0, 0.0001, 0.002, 0.05)):
            with trio.move_on_after(patience_s):
                while True:
                    block = await stream.read_block(7, 1 << 18)
                    keys += [m[38:] for m in block if m[25:26] == b"I"]
            if len(keys) >= 20_000:
                break
        assert keys == [str(i).encode() for i in range(1, 20_001)]
        await stream.close()

    trio.run(check)


def test_closing_tells_the_reader_and_ends_amid_a_backlog(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION p FOR TABLE t")

    async def check() -> None:
        slot = await made_slot(database.dsn)
        stream = await opened(database.dsn, slot)

        async def read() -> None:
            with pytest.raises(SourceUnavailable):
                await read_on(stream)

        with trio.fail_after(HANG_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await trio.sleep(0.3)
                await stream.close()
            with pytest.raises(SourceUnavailable):
                await stream.send_status(NO_LSN, NO_LSN, NO_LSN)
            database.execute("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 50000) i")
            while True:
                try:
                    unread = await opened(database.dsn, slot)
                    break
                except SourceUnavailable:
                    await trio.sleep(0.05)
            await trio.sleep(0.2)
            await unread.close()
            await unread.close()

    trio.run(check)


@BOTH
def test_a_publication_that_vanishes_ends_the_stream(server: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(server)
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")

    async def check() -> None:
        slot = await made_slot(database.dsn)
        database.execute("INSERT INTO t VALUES (1)")
        database.execute("DROP PUBLICATION p")
        database.execute("INSERT INTO t VALUES (2)")
        for _ in range(2):
            stream = await opened(database.dsn, slot)
            with trio.fail_after(HANG_S):
                with pytest.raises(Fatal) as caught:
                    await read_rows(stream, 2)  # the second row is never there
            assert caught.value.code == "WB106"
            assert 'CREATE PUBLICATION "p" FOR TABLE "public"."t";' in caught.value.fix
            assert f"SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn());" in caught.value.fix
            with pytest.raises(Fatal):
                await stream.read_block(500, 1 << 18)
            await stream.close()
        with closing(await connected(database.dsn)) as connection:
            health = await slot_health(connection, slot)
            assert health is not None
            assert health.current_lsn > health.confirmed_lsn
        database.execute("CREATE PUBLICATION p FOR TABLE t")
        stream = await opened(database.dsn, slot)
        with trio.fail_after(HANG_S), pytest.raises(Fatal) as caught:
            await read_rows(stream, 2)
        await stream.close()
        assert (caught.value.code, "CREATE" in caught.value.fix) == ("WB106", False)
        wait_for(lambda: database.execute("SELECT FROM pg_replication_slots WHERE slot_name = %s AND active", [slot]) == [])
        database.execute(caught.value.fix.split("\n")[0])
        database.execute("INSERT INTO t VALUES (3)")
        stream = await opened(database.dsn, slot)
        with trio.fail_after(HANG_S):
            await read_rows(stream, 1)
        await stream.close()

    trio.run(check)


@BOTH
def test_a_slot_in_use_or_missing_is_waited_for(server: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(server)
    database.execute("CREATE PUBLICATION p")

    async def check() -> None:
        slot = await made_slot(database.dsn)
        stream = await opened(database.dsn, slot)
        with pytest.raises(SourceUnavailable) as caught:
            await opened(database.dsn, slot)
        assert "is active for PID" in caught.value.said
        await stream.close()
        with closing(await connected(database.dsn)) as connection:
            await drop_slot(connection, slot)
            assert await slot_state(connection, slot) is None
            assert await slot_health(connection, slot) is None
        with pytest.raises(SourceUnavailable) as missing:
            await opened(database.dsn, slot)
        assert missing.value.code == "WB108"

    trio.run(check)


@pytest.mark.parametrize("version", [18, 15])
def test_a_lost_slot_is_fatal(version: int, make_postgres: MakePostgres) -> None:
    server = make_postgres(version, max_slot_wal_keep_size="1MB", max_wal_size="32MB", min_wal_size="32MB")  # type: ignore[arg-type]
    dsn = server.dsn()
    execute(dsn, "CREATE PUBLICATION p; CREATE TABLE t (v text)")

    async def check() -> None:
        slot = await made_slot(dsn)
        for _ in range(4):
            execute(dsn, "INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 20000)")
            execute(dsn, "SELECT pg_switch_wal()")
            execute(dsn, "CHECKPOINT")
        with closing(await connected(dsn)) as connection:
            state = await slot_state(connection, slot)
            assert state is not None
            assert state.wal_status == "lost"
        with pytest.raises(Fatal) as caught:
            await opened(dsn, slot)
        assert caught.value.code == "WB107"
        assert caught.value.said.startswith("55000 ")

    trio.run(check)


def test_a_server_that_is_killed_amid_the_stream_wakes_reader_and_sender(make_postgres: MakePostgres) -> None:
    server = make_postgres()
    dsn = server.dsn()
    execute(dsn, "CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")

    async def check() -> None:
        slot = await made_slot(dsn)
        stream = await opened(dsn, slot)
        execute(dsn, "INSERT INTO t VALUES (1)")
        await read_rows(stream, 1)

        async def read() -> None:
            with pytest.raises(SourceUnavailable):
                await read_on(stream)

        async def send_on() -> None:
            while True:
                await stream.send_status(NO_LSN, NO_LSN, NO_LSN)
                await trio.sleep(0.02)

        async def send() -> None:
            with pytest.raises(SourceUnavailable):
                await send_on()

        with trio.fail_after(HANG_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                nursery.start_soon(send)
                await trio.sleep(0.2)
                await trio.to_thread.run_sync(server.kill)
            await stream.close()

    trio.run(check)


@BOTH
def test_slot_creation_says_what_it_waits_for_and_can_be_cancelled(
    server: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    database: Database = request.getfixturevalue(server)
    monkeypatch.setattr("actors.clients.postgres.slot_waits.SAY_AFTER_S", 0.2)
    database.execute("CREATE TABLE t (id int)")
    slot = slot_name()

    async def check() -> None:
        with database.connect(autocommit=False) as writer:
            writer.execute("INSERT INTO t VALUES (1)")
            connection = await connected(database.dsn, replication=True)
            with trio.move_on_after(1.5) as deadline, caplog.at_level(logging.WARNING):
                await create_slot(connection, slot)
            assert deadline.cancelled_caught
            said = [getattr(record, "fields", {}) for record in caplog.records]
            assert any(f"pg_terminate_backend({writer.info.backend_pid})" in str(fields.get("fix")) for fields in said), said
            deadline_s = time.monotonic() + HANG_S
            while database.execute(f"SELECT 1 FROM pg_replication_slots WHERE slot_name = '{slot}'"):
                assert time.monotonic() < deadline_s, "the server goes on making the slot"
            writer.commit()
        with closing(await connected(database.dsn, replication=True)) as connection:
            assert await create_slot(connection, slot) > 0

    trio.run(check)


def test_a_slot_that_another_process_has_just_made_is_waited_for(database: Database) -> None:
    async def main() -> None:
        slot = slot_name()
        with closing(await connected(database.dsn, replication=True)) as connection:
            await create_slot(connection, slot)
            with pytest.raises(SourceUnavailable, match="made by another process just now") as caught:
                await create_slot(connection, slot)
            assert caught.value.code == "WB104"
            await connection.query(f"DROP_REPLICATION_SLOT {slot}")

    trio.run(main)


def test_no_free_slot_is_said_with_the_setting(make_postgres: MakePostgres) -> None:
    server = make_postgres(max_replication_slots="1")

    async def check() -> None:
        await made_slot(server.dsn())
        with pytest.raises(ConfigError) as caught:
            await made_slot(server.dsn())
        assert "max_replication_slots" in caught.value.fix

    trio.run(check)


@BOTH
def test_the_server_says_who_it_is(server: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(server)

    async def check() -> None:
        with closing(await connected(database.dsn, replication=True)) as connection:
            identity = await identify_system(connection)
        assert identity.timeline == 1
        assert identity.wal_end > 0
        assert [(identity.system_id,)] == [(str(i),) for (i,) in database.execute(
            "SELECT system_identifier FROM pg_control_system()")]  # fmt: skip

    trio.run(check)


def test_a_promoted_server_tells_where_its_timelines_part(make_postgres: MakePostgres) -> None:
    server = make_postgres()
    server.stop()
    (server.data_dir / "standby.signal").touch()
    server.start()
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("SELECT pg_promote()")

    async def check() -> None:
        with closing(await connected(server.dsn(), replication=True)) as connection:
            identity = await identify_system(connection)
            assert identity.timeline == 2
            ((timeline, left_at),) = await timeline_history(connection, 2)
            assert (timeline, 0 < left_at <= identity.wal_end) == (1, True)
            assert await create_slot(connection, slot_name()) > left_at

    trio.run(check)


@BOTH
def test_a_server_with_nothing_to_say_is_asked_for_a_sign_of_life(
    server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers our status updates only when asked to, and a bridge that hears nothing for long is called silent."""
    database: Database = request.getfixturevalue(server)
    database.execute("CREATE PUBLICATION p")
    monkeypatch.setattr(feedback, "ASK_AFTER_S", 0.05)
    monkeypatch.setattr(status_reporter, "STATUS_EVERY_S", 0.05)

    async def main() -> None:
        stream = await opened(database.dsn, await made_slot(database.dsn))
        spoken = feedback.Feedback(NO_LSN)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(status_reporter.report_status, stream, spoken)
            with trio.fail_after(HANG_S):
                for _ in range(20):
                    for message in await stream.read_block(500, 1 << 18):
                        assert message[:1] == b"k"
                        # all is confirmed, else it says more by itself
                        spoken.confirmed.value = max(spoken.confirmed.value, Lsn(struct.unpack_from(">q", message, 1)[0]))
                    spoken.data_arrived(spoken.confirmed.value, reply_wanted=False)
            nursery.cancel_scope.cancel()
        await stream.close()

    trio.run(main)


def test_a_prepared_transaction_in_the_way_of_a_slot_is_named_and_the_fix_ends_it(
    make_postgres: MakePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.clients.postgres.slot_waits.SAY_AFTER_S", 0.2)
    server = make_postgres(max_prepared_transactions="5")
    database = Database(server, "app")
    database.execute("CREATE TABLE t (id int)")
    with database.connect(autocommit=False) as writer:
        writer.execute("INSERT INTO t VALUES (1)")
        writer.execute("PREPARE TRANSACTION 'it''s open'")
        writer.commit()
    shown: list[Problem] = []

    def end_it(problem: Problem) -> None:
        shown.append(problem)
        database.execute(problem.fix.split("--")[0])

    async def check() -> None:
        with trio.fail_after(20), closing(await connected(server.dsn("app"), replication=True)) as connection:
            assert await create_slot(connection, slot_name(), show=end_it) > 0

    trio.run(check)
    assert "prepared transaction it's open of database app" in shown[0].what
    assert database.execute("SELECT id FROM t") == [(1,)]
    database.close()


def test_a_large_message_arrives_in_portions_whatever_is_cancelled_and_sent_meanwhile(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION p FOR TABLE t")
    pieces = 1_000_000

    async def check() -> None:
        stream = await opened(database.dsn, await made_slot(database.dsn))
        database.execute(f"INSERT INTO t SELECT 1, string_agg(md5(i::text), '') FROM generate_series(1, {pieces}) i")
        database.execute("INSERT INTO t VALUES (2, 'after')")
        messages: list[bytes] = []
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await stream.send_status(NO_LSN, NO_LSN, NO_LSN, reply_wanted=turns % 10 == 0)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            while sum(message[25:26] == b"I" for message in messages) < 2:
                with trio.move_on_after(0.05):
                    messages += map(bytes, await stream.read_block(500, 1 << 18))
            nursery.cancel_scope.cancel()
        large, small = (message for message in messages if message[25:26] == b"I")
        ((expected,),) = database.execute("SELECT md5(v) FROM t WHERE id = 1")
        assert hashlib.md5(large[-32 * pieces :]).hexdigest() == expected
        assert small.endswith(b"after")
        assert turns > len(large) / (1024 * 1024), "others had their turns"
        await stream.close()
        await (await opened(database.dsn, await made_slot(database.dsn))).close()

    trio.run(check)


@BOTH
def test_a_stream_continues_on_a_new_connection_where_it_was(server: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(server)
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
    reader = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s"

    async def check() -> None:
        slot = await made_slot(database.dsn)
        stream = await opened(database.dsn, slot)
        database.execute("INSERT INTO t VALUES (1)")
        end = await read_rows(stream, 1)
        before = database.execute(reader, [slot])
        database.execute("INSERT INTO t VALUES (2)")
        database.execute("INSERT INTO t VALUES (3)")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_status, end, NO_LSN, NO_LSN)
            assert await stream.renew(end)
        assert database.execute(reader, [slot]) != before
        end = await read_rows(stream, 2)
        await stream.send_status(end, end, end)
        server = stream._server
        assert server is not None
        stream._server = server._replace(started_at="before it was restarted")
        with pytest.raises(SourceUnavailable, match="another server"):
            await stream.renew(end)
        await stream.close()
        assert database.execute(reader, [slot]) == [(None,)]
        with closing(await connected(database.dsn)) as connection:
            state = await slot_state(connection, slot)
            assert state is not None
            assert state.confirmed_flush_lsn == end

    trio.run(check)


def test_without_room_for_a_second_walsender_the_stream_keeps_its_connection(make_postgres: MakePostgres) -> None:
    dsn = make_postgres(max_wal_senders="1").dsn()
    execute(dsn, "CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")

    async def check() -> None:
        slot = await made_slot(dsn)
        stream = await opened(dsn, slot)
        execute(dsn, "INSERT INTO t VALUES (1)")
        end = await read_rows(stream, 1)
        assert not await stream.renew(end)
        execute(dsn, "INSERT INTO t VALUES (2)")
        await read_rows(stream, 1)
        await stream.close()

    trio.run(check)
