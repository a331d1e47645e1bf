"""Suspended tables: what is left out, from where until where, over restarts and while both of its writers write."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from actors.contract.bridge_record import Suspended
from actors.positions import SCHEMA_RANK, Lsn, Position
from actors.suspensions import Suspensions
from actors.telemetry.telemetry import Telemetry
from tests.unit.records import FakeStore, suspensions_of


def at(lsn: int, seq: int = 0) -> Position:
    return Position(Lsn(lsn), seq)


def made(store: FakeStore, telemetry: Telemetry | None = None) -> Suspensions:
    return Suspensions(store, telemetry or Telemetry())  # type: ignore[arg-type]


def ends_at(lsn: int) -> Callable[[], Awaitable[Lsn]]:
    async def wal_end() -> Lsn:
        await trio.lowlevel.checkpoint()
        return Lsn(lsn)

    return wal_end


def test_a_table_is_covered_from_its_change_on_and_others_are_not() -> None:
    suspensions = suspensions_of()
    assert not suspensions.tables
    suspensions.suspend("a", at(100, 3), "too large")
    assert suspensions.tables
    assert not suspensions.covers("a", at(100, 2))
    assert not suspensions.covers("a", Position(Lsn(100), 3, SCHEMA_RANK)), "a schema event stands before its row"
    assert suspensions.covers("a", at(100, 3))
    assert suspensions.begins_at("a", at(100, 3))
    assert suspensions.covers("a", at(900))
    assert not suspensions.begins_at("a", at(900))
    assert not suspensions.covers("b", at(900))


def test_a_resumed_table_is_covered_below_the_end_of_the_wal_and_then_forgotten() -> None:
    suspensions = suspensions_of({"a": Suspended(at(100, 3), Lsn(500))})
    assert suspensions.covers("a", at(499, 9))
    assert not suspensions.covers("b", at(500))
    assert not suspensions.tables, "positions come in order: it is over for good"
    assert not suspensions.covers("a", at(500))


def test_a_suspension_is_recorded_and_shown_once() -> None:
    async def main() -> None:
        store, telemetry = FakeStore({"b": Suspended(at(7))}), Telemetry()
        suspensions = made(store, telemetry)
        assert list(telemetry.suspended_tables) == ["b"]
        suspensions.suspend("sales/a", at(100, 3), "too large")
        assert "sales/a" not in telemetry.suspended_tables, "shown once it is recorded"
        await suspensions.record()
        await suspensions.record()
        assert [record.suspended for record in store.written] == [{"b": Suspended(at(7)), "sales/a": Suspended(at(100, 3))}]
        problem = telemetry.suspended_tables["sales/a"]
        assert (problem.code, problem.what) == ("WB301", "table sales.a is suspended: too large")

    trio.run(main)


def test_a_resumed_table_is_no_problem_any_more_and_resuming_another_changes_nothing() -> None:
    async def main() -> None:
        store, telemetry = FakeStore({"a": Suspended(at(7))}), Telemetry()
        suspensions = made(store, telemetry)
        await suspensions.resume("b", ends_at(50))
        assert not store.written
        await suspensions.resume("a", ends_at(50))
        assert store.record.suspended == {"a": Suspended(at(7), Lsn(50))}
        assert telemetry.suspended_tables == {}
        assert not suspensions.covers("a", at(8)), "published from the next event on"
        await suspensions.resume("a", ends_at(90))
        assert len(store.written) == 1, "it is resumed already"
        assert made(store, telemetry).covers("a", at(49)), "after a restart the snapshot has what is below"

    trio.run(main)


def test_a_table_that_is_resumed_before_its_new_suspension_is_recorded_is_not_recorded_as_suspended_again() -> None:
    async def main() -> None:
        store, telemetry = FakeStore({"a": Suspended(at(7))}), Telemetry()
        suspensions = made(store, telemetry)
        suspensions.suspend("a", at(40), "too large")
        await suspensions.resume("a", ends_at(50))
        await suspensions.record()
        assert store.record.suspended == {"a": Suspended(at(7), Lsn(50))}
        assert telemetry.suspended_tables == {}

    trio.run(main)


def test_the_reason_survives_a_new_run_of_the_pipeline() -> None:
    async def main() -> None:
        store, telemetry = FakeStore(), Telemetry()
        suspensions = made(store, telemetry)
        suspensions.suspend("a", at(1), "its key is too large")
        await suspensions.record()
        shown = telemetry.suspended_tables["a"]
        made(store, telemetry)
        assert telemetry.suspended_tables == {"a": shown}

    trio.run(main)


def test_a_table_that_is_suspended_again_while_it_is_resumed_stays_suspended() -> None:
    async def main() -> None:
        for record_at in ("before", "during", "after"):
            store, telemetry = FakeStore({"a": Suspended(at(7))}), Telemetry()
            suspensions = made(store, telemetry)

            async def wal_end(when: str = record_at, suspensions: Suspensions = suspensions) -> Lsn:
                suspensions.suspend("a", at(40), "too large")
                if when == "before":
                    await suspensions.record()
                return Lsn(50)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(suspensions.resume, "a", wal_end)
                if record_at == "during":
                    await trio.lowlevel.checkpoint()
                    nursery.start_soon(suspensions.record)
            await suspensions.record()
            assert store.record.suspended == {"a": Suspended(at(40))}
            assert "a" in telemetry.suspended_tables
            assert suspensions.covers("a", at(60))

    trio.run(main)


def test_two_writers_of_the_record_lose_nothing() -> None:
    async def main() -> None:
        store = FakeStore({"a": Suspended(at(7))})
        suspensions = made(store)
        suspensions.suspend("b", at(40), "too large")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(suspensions.resume, "a", ends_at(50))
            nursery.start_soon(suspensions.record)
        assert store.record.suspended == {"a": Suspended(at(7), Lsn(50)), "b": Suspended(at(40))}

    trio.run(main)


rows = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([True, True, True, False])), min_size=1, max_size=25)
moments = st.lists(
    st.sampled_from(["step", "step", "step", "resume a", "resume b", "crash", "crash before the gap"]), max_size=60
)


@given(rows, moments, st.integers(0, 5))
def test_every_row_is_published_or_covered_by_a_gap_and_the_snapshot_that_resumes_its_table(
    written: list[tuple[str, bool]], moments: list[str], ahead: int
) -> None:
    """A stream of rows, some of which do not fit, with snapshots and crashes in between: nothing is lost without a gap event.

    The WAL ends up to `ahead` rows after the last one that was read when a table is resumed.
    """

    async def main() -> None:
        store = FakeStore()
        suspensions = made(store)
        stream: list[tuple[str, str, int]] = []  # ("row" or "gap", table, LSN)
        resumed: dict[str, int] = {}
        read = 0

        async def step(*, crash_before_gap: bool) -> bool:
            nonlocal read
            table, fits = written[read]
            lsn = read + 1
            read += 1
            if suspensions.covers(table, at(lsn)):
                if suspensions.begins_at(table, at(lsn)):
                    stream.append(("gap", table, lsn))
            elif fits:
                stream.append(("row", table, lsn))
            else:
                suspensions.suspend(table, at(lsn), "too large")
                await suspensions.record()
                if crash_before_gap:
                    return True
                stream.append(("gap", table, lsn))
            return False

        for moment in [*moments, *["step"] * len(written)]:
            crashed = moment == "crash"
            if moment.startswith("resume"):
                table = moment[-1]
                wal_end = min(len(written), read + ahead) + 1
                active = table in store.record.suspended and not store.record.suspended[table].until
                await suspensions.resume(table, ends_at(wal_end))
                if active:
                    resumed[table] = max(wal_end, resumed.get(table, 0))
            elif not crashed and read < len(written):
                crashed = await step(crash_before_gap=moment == "crash before the gap")
            if crashed:
                suspensions = made(store)
                read = stream[-1][2] if stream else 0
        places = [lsn for _, _, lsn in stream]
        assert places == sorted(set(places)), "each place once, in order"
        for lsn, (table, _) in enumerate(written, 1):
            if ("row", table, lsn) in stream:
                continue
            gaps = [g for kind, t, g in stream if kind == "gap" and t == table and g <= lsn]
            suspended = store.record.suspended.get(table)
            still = suspended is not None and not suspended.until
            assert lsn < resumed.get(table, 0) or (still and gaps), f"row {lsn} of {table} is lost"
            assert gaps or lsn < resumed.get(table, 0)

    trio.run(main)
