"""What `walbridge verify` prints beside a difference."""

from __future__ import annotations

import pytest

from actors.commands.verify import show
from actors.positions import Lsn
from actors.verification.comparison import TableReport
from actors.verification.proof import Result


@pytest.mark.parametrize(
    ("deleted", "words"),
    [
        (0, "nobody else may write to a replica"),
        (1, "1 message was deleted in the middle of the stream (WB224), which a replica may lack"),
        (2_000, "2,000 messages were deleted in the middle of the stream (WB224), which a replica may lack"),
    ],
)
def test_a_difference_is_not_blamed_on_a_writer_when_messages_were_deleted(
    deleted: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = TableReport("users")
    report.source_rows, report.replica_rows, report.mismatched_keys = 2, 1, 1
    show(Result(Lsn(1), [report], [], deleted))
    assert f"fix: start the mirror once with --again users; {words}" in capsys.readouterr().out
