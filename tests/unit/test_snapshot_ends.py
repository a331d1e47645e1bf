"""How snapshots end: cancelled whether or not they are running, or begun again, whatever ends the bridge in between."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.clients.postgres.connection import PostgresError
from actors.contract.event_encoder import event_encoder
from actors.pace import Pace
from actors.positions import NO_LSN
from actors.publication_model import PublicationModel
from actors.settings.resolve import resolve
from actors.snapshots.chunks import RowTooLarge
from actors.snapshots.failures import SnapshotFailed, failure_of
from actors.snapshots.ranges_taking import RangesTaker, ShapeChanged
from actors.snapshots.requests import BODIES_BYTES_MAX, Asked, SnapshotRequests
from actors.snapshots.setup import SnapshotSetup
from actors.snapshots.transaction_log import TransactionLog
from actors.snapshotter import Job, Snapshotter
from actors.startup.streams import StreamSetup
from actors.suspensions import Suspensions
from actors.telemetry.telemetry import Telemetry
from tests.unit.fake_stream import FakeJetStream

CONFIG = resolve({}, {"DATABASE_URL": "postgresql://u@h/db", "NATS_URL": "nats://fake"})
CANCEL = "snapshot.request.users+cancel-snap-1-a@CDC"
PUBLISHED = SimpleNamespace(name="users", qualified="public.users", token="users")


class Streams(FakeJetStream):
    """INIT and REQUESTS, with an account of what was stored and removed, in order."""

    def __init__(self, *init: tuple[str, dict[str, Any]], requests: tuple[str, ...] = ()) -> None:
        found = [(subject, "", json.dumps(body).encode()) for subject, body in init]
        super().__init__({"INIT": [*found], "REQUESTS": [(subject, "", b"") for subject in requests], "CDC": []})
        self.done: list[str] = []
        self.refuses = False

    async def publish(self, subject: str, body: bytes, headers: dict[str, str] | None = None) -> int:
        if self.refuses:
            raise JetStreamError(f"store {subject}", 503, 10077, "full")
        stream = "REQUESTS" if subject.startswith("snapshot.") else "INIT"
        self.streams[stream].append((subject, "", body))
        self.done.append(f"stored {subject}")
        return len(self.streams[stream])

    async def purge(self, stream: str, subject: str) -> None:
        self.streams[stream] = [None if one is None or one[0] == subject else one for one in self.streams[stream]]
        self.done.append(f"removed {subject}")

    async def keys_of(self, bucket: str, pattern: str) -> list[str]:
        return []

    def errors(self, answered_as: str) -> list[tuple[str, str]]:
        found = [json.loads(one[2]) for one in self.streams["INIT"] if one and one[0] == f"init.error.{answered_as}"]
        return [(body["error_type"], body["snapshot_id"]) for body in found]


def started(answered_as: str, snapshot_id: str = "snap-1-a") -> tuple[str, dict[str, Any]]:
    return f"init.start.{answered_as}", {"snapshot_id": snapshot_id, "stream": "CDC"}


def ended(answered_as: str, snapshot_id: str = "snap-1-a", *, how: str = "meta") -> tuple[str, dict[str, Any]]:
    return f"init.{how}.{answered_as}", {"snapshot_id": snapshot_id, "stream": "CDC"}


def snapshotter_of(js: Streams) -> Snapshotter:
    stream = StreamSetup("CDC", b"", "plain", 0, 1 << 20, 1 << 20, requests_kept=True)
    setup = SnapshotSetup(
        CONFIG,
        stream,
        event_encoder("json"),
        TransactionLog(),
        {},
        lambda: False,
        lambda _: ("v1", 0),
        lambda: NO_LSN,
        Pace(Telemetry(), 0),
    )
    publication = PublicationModel("pub")
    publication.tables = {"users": cast(Any, PUBLISHED)}
    made = Snapshotter(setup, cast(JetStream, js), publication, cast(Suspensions, None), Telemetry())
    for subject in [one[0] for one in js.streams["REQUESTS"] if one is not None]:
        made._requests._add_subject(subject)
    return made


@pytest.mark.parametrize("answered_as", ["users", "users+ranges"])
def test_a_cancel_that_comes_while_nothing_runs_ends_what_has_begun(answered_as: str) -> None:
    js = Streams(started(answered_as), requests=(CANCEL,))
    made = snapshotter_of(js)
    suffix = answered_as.removeprefix("users")
    made._requests.add(Asked("users", "CDC", suffix))  # what would take it up again
    trio.run(made._cancel)
    assert js.errors(answered_as) == [("cancelled", "snap-1-a")]
    assert made._requests.waiting == ()
    assert js.done[0] == f"stored init.error.{answered_as}"
    assert js.done[-1] == f"removed {CANCEL}"


@pytest.mark.parametrize(
    "init",
    [
        [],
        [started("users"), ended("users")],
        [started("users"), ended("users", how="error")],
        [started("users"), started("users", "snap-2-a")],
        [("init.start.users", {"snapshot_id": "snap-1-a", "stream": "OTHER"})],
    ],
)
def test_a_cancel_of_what_is_over_changes_nothing(init: list[tuple[str, dict[str, Any]]]) -> None:
    js = Streams(*init, requests=(CANCEL,))
    made = snapshotter_of(js)
    before = len(js.streams["INIT"])
    trio.run(made._cancel)
    assert len(js.streams["INIT"]) == before
    assert js.done == [f"removed {CANCEL}"]


def test_a_request_that_is_younger_than_what_was_cancelled_is_served() -> None:
    younger = "snapshot.request.users@CDC"
    js = Streams(started("users"), requests=(CANCEL, younger))
    js.stored_at = {"INIT": "2026-06-01T00:00:00Z", "REQUESTS": "2026-06-01T00:00:01Z"}
    made = snapshotter_of(js)
    trio.run(made._cancel)
    assert js.errors("users") == [("cancelled", "snap-1-a")]
    assert made._requests.waiting == (Asked("users", "CDC"),)


def test_a_cancel_stays_until_its_error_is_stored() -> None:
    js = Streams(started("users"), requests=(CANCEL,))
    js.refuses = True
    made = snapshotter_of(js)
    trio.run(made._cancel)
    assert js.done == []


def job_of(made: Snapshotter, answered_as: str) -> Job:
    asked = Asked("users", "CDC", answered_as.removeprefix("users"))
    job = Job([asked], cast(Any, PUBLISHED), made._board.running(answered_as), lambda: None)
    made._jobs[answered_as] = job
    return job


@pytest.mark.parametrize("shown", ["snap-1-a", ""])
def test_a_cancel_of_a_running_snapshot_is_removed_once_the_snapshot_has_ended(
    shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    js = Streams(started("users"), requests=(CANCEL,))
    made = snapshotter_of(js)
    job = job_of(made, "users")
    job.progress.snapshot_id = shown

    async def serve(job: Job) -> None:
        await made._cancel()
        assert f"removed {CANCEL}" not in js.done
        try:
            job.cancelling.check()
        except SnapshotFailed as exc:
            job.progress.snapshot_id = "snap-1-a"
            await made._fail(job, exc)

    monkeypatch.setattr(made, "_serve", serve)
    trio.run(made._run, job)
    assert js.errors("users") == [("cancelled", "snap-1-a")]
    assert js.done[0] == "stored init.error.users"
    assert js.done[-1] == f"removed {CANCEL}"


def test_a_snapshot_that_begins_again_is_asked_for_before_the_one_before_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    js = Streams()
    made = snapshotter_of(js)
    job = job_of(made, "users+ranges")
    taken: list[int] = []

    async def take(self: RangesTaker, *_: Any) -> None:
        taken.append(1)
        if len(taken) == 1:
            job.progress.snapshot_id = "snap-1-a"
            raise ShapeChanged
        await self._begun()

    async def resume(_: Job) -> None:
        pass

    monkeypatch.setattr(RangesTaker, "take", take)
    monkeypatch.setattr(made, "_resume", resume)
    trio.run(made._run, job)
    again = "snapshot.request.users+ranges@CDC"
    assert js.done == [f"stored {again}", "stored init.error.users+ranges", f"removed {again}"]
    assert js.errors("users+ranges") == [("table_changed", "snap-1-a")]


def test_who_sees_the_bridges_state_sees_no_row() -> None:
    for error, kind in (
        (RowTooLarge(9_000, 4_096, "id=secret"), "row_too_large"),
        (PostgresError("22P02", 'invalid input syntax for type integer: "secret"'), "postgres_error"),
    ):
        js = Streams()
        made = snapshotter_of(js)
        trio.run(made._fail, job_of(made, "users"), failure_of(error))
        (stored,) = [json.loads(one[2]) for one in js.streams["INIT"] if one]
        assert "secret" in stored["error_message"]
        telemetry = made._board._telemetry
        shown = telemetry.snapshots["users"].error
        assert shown.startswith(f"{kind}: ")
        seen = shown + repr(telemetry.journal.after(0))
        assert "secret" not in seen


def test_the_bodies_of_waiting_requests_are_bounded() -> None:
    requests = SnapshotRequests(cast(JetStream, None), (), stream="CDC", kept=False)
    for number in range(100):
        requests.add(Asked("users", "", f"+me-{number}"), b"x" * 1_000_000)
        requests.add(Asked("users", "", "+me-0"), b"x" * 1_000_000)
    kept = len(requests.waiting)
    assert kept == BODIES_BYTES_MAX // 1_000_000
    requests.leave(*requests.waiting)
    requests.add(Asked("users", "", "+me-again"), b"x" * 1_000_000)
    assert len(requests.waiting) == 1


def test_who_follows_a_snapshot_in_rounds_waits_for_the_one_that_begins_by_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from actors.commands import snapshot  # noqa: PLC0415

    js = Streams(started("users+ranges"))
    js.streams["INIT"].append(
        ("init.error.users+ranges", "", json.dumps({
            "snapshot_id": "snap-1-a", "stream": "CDC", "error_type": "table_changed", "error_message": "altered"}).encode())
    )  # fmt: skip
    monkeypatch.setattr(snapshot, "LOOK_EVERY_S", 0)

    async def follow() -> dict[str, Any]:
        found: dict[str, Any] = {}
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                found.update(await snapshot._follow(cast(JetStream, js), "users+ranges", "CDC", 1))

            nursery.start_soon(wait)
            while "altered" not in capsys.readouterr().err:
                await trio.lowlevel.checkpoint()
                assert not found
            js.streams["INIT"].append(("init.meta.users+ranges", "", json.dumps({"snapshot_id": "snap-2-a"}).encode()))
        return found

    assert trio.run(follow)["snapshot_id"] == "snap-2-a"
