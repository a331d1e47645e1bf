"""How far the bridge is behind: it falls when something is stored, and an idle database is never behind."""

from __future__ import annotations

from actors.positions import NO_LSN, Lsn
from actors.telemetry.backlog import CATCHING_UP_S, UNREAD_MIN_BYTES, Backlog

MB = 1024 * 1024


def begun(skip: int = 0, wal_end: int = 0, now: float = 0.0) -> Backlog:
    backlog = Backlog()
    backlog.begin(Lsn(skip), Lsn(wal_end), now)
    return backlog


def test_a_change_waits_from_its_commit_until_it_is_stored() -> None:
    backlog = begun()
    assert backlog.unstored_s(NO_LSN, 1000.0) == 0
    backlog.told([(Lsn(100), 990.0), (Lsn(200), 995.0)], 1000.0)
    assert backlog.unstored_s(Lsn(200), 1000.0) == 10
    backlog.stored(Lsn(108))
    assert backlog.unstored_s(Lsn(200), 1000.0) == 5
    assert backlog.unstored_s(Lsn(200), 990.0) == 0, "PostgreSQL's clock may be ahead of ours"
    backlog.stored(Lsn(208))
    assert backlog.unstored_s(Lsn(200), 1000.0) == 0


def test_an_outage_keeps_the_age_until_what_waited_is_stored() -> None:
    backlog = begun()
    backlog.told([(Lsn(100), 990.0), (Lsn(200), 995.0)], 1000.0)
    backlog.stored(Lsn(108))
    backlog.begin(Lsn(100), Lsn(300), 1060.0)
    assert backlog.unstored_s(Lsn(100), 1060.0) == 65, "although nothing of it has come again"
    backlog.told([(Lsn(200), 995.0)], 1061.0)
    backlog.stored(Lsn(208))
    assert backlog.unstored_s(Lsn(300), 1061.0) == 0


def test_what_another_history_has_not_is_not_waited_for() -> None:
    backlog = begun()
    backlog.told([(Lsn(5000), 990.0)], 1000.0)
    backlog.begin(Lsn(100), Lsn(300), 1060.0)  # a standby was promoted that never had it
    assert backlog.unstored_s(Lsn(100), 1060.0) == 70
    backlog.stored(Lsn(300))
    assert backlog.unstored_s(Lsn(300), 1060.0) == 0


def test_an_outage_on_an_idle_database_is_no_lag() -> None:
    backlog = begun(100, 300)
    backlog.begin(Lsn(100), Lsn(300), 60.0)
    backlog.wal_ends(Lsn(300 + UNREAD_MIN_BYTES // 2), Lsn(300), 70.0)
    assert (backlog.unstored_s(Lsn(300), 76.0), backlog.unread_s(Lsn(300), 76.0)) == (0, 0)


def test_a_pipeline_that_is_empty_between_two_batches_of_a_backlog_is_still_behind() -> None:
    backlog = begun(0, 226 * MB, 1000.0)
    backlog.told([(Lsn(10 * MB), 975.0)], 1001.0)
    backlog.stored(Lsn(10 * MB + 8))
    assert backlog.unread_bytes(Lsn(10 * MB)) == 216 * MB
    assert backlog.unstored_s(Lsn(10 * MB), 1001.25) == 26.25, "the next change is about as old"
    assert backlog.unstored_s(Lsn(10 * MB), 1001 + CATCHING_UP_S) == 0, "PostgreSQL reads WAL without changes for us"
    assert backlog.unread_s(Lsn(10 * MB), 1030.0) == 30
    assert backlog.unstored_s(Lsn(226 * MB), 1001.5) == 0, "caught up"
    assert backlog.unread_s(Lsn(226 * MB), 1030.0) == 0


def test_what_is_not_read_is_as_old_as_the_first_look_that_saw_it() -> None:
    backlog = begun(0, MB, 0.0)
    for second in range(1, 1000):
        backlog.wal_ends(Lsn((second + 1) * MB), Lsn(max(0, second - 20) * MB), float(second))
    assert backlog.unread_bytes(Lsn(979 * MB)) == 21 * MB
    assert backlog.unread_s(Lsn(979 * MB), 999.0) == 20
