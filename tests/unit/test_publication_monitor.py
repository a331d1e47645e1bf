"""What a look finds is told, also if PostgreSQL ends the connection between finding and telling."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio

from actors.clients.postgres.connection import PgConnection
from actors.contract.publication import KnownTable, TableFacts
from actors.errors import SourceUnavailable
from actors.publication_model import PublicationModel
from actors.publication_monitor import PublicationMonitor
from actors.settings.resolve import resolve
from actors.telemetry.telemetry import Telemetry
from tests.unit.records import FakeStore


def facts(token: str, definition: str) -> TableFacts:
    return TableFacts(token, 1, definition, 1, 1, (), (), 7)


class Connection:
    """It ends at the first question."""

    ended = False

    async def query(self, sql: str, params: object = ()) -> list[tuple[str | None, ...]]:
        if not self.ended:
            self.ended = True
            raise SourceUnavailable("WB102", "connection to PostgreSQL lost")
        return [("f", None)] if "recovery" in sql else [("0/100",)] if "pg_current_wal" in sql else []


@pytest.mark.parametrize("change", ["added", "changed", "removed"])
def test_a_look_that_ends_before_it_has_told_is_made_again(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = PublicationModel("cdc_pub")
    model.begin({} if change == "added" else {"users": KnownTable.of(facts("users", "before"), 5)}, 10, is_first=False)
    now = {} if change == "removed" else {"users": facts("users", "after")}

    async def look(_connection: object) -> None:
        model.seen(now, 9)

    async def no_problems(_connection: object, _model: object) -> list[Any]:
        return []

    monkeypatch.setattr(model, "look", look)
    for check in ("find_problems", "check_again"):
        monkeypatch.setattr(f"actors.publication_monitor.{check}", no_problems)
    monitor = PublicationMonitor(
        resolve({}, {"DATABASE_URL": "postgresql://u@here/db"}), model, cast(Any, None), cast(Any, FakeStore()), lambda _: None, lambda *_: None,
        Telemetry(),
    )  # fmt: skip
    connection = cast(PgConnection, Connection())

    async def main() -> None:
        with pytest.raises(SourceUnavailable):
            await monitor.look(connection)
        assert not monitor.news
        await monitor.look(connection)

    trio.run(main)
    assert [(news.token, news.change) for news in monitor.news] == [("users", change)]
