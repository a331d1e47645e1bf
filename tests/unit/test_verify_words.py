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
        (0, ""),
        (1, "1 message was deleted in the middle of the stream (WB224): a replica may lack them\n"),
        (2_000, "2,000 messages were deleted in the middle of the stream (WB224): a replica may lack them\n"),
    ],
)
def test_a_difference_is_not_blamed_on_a_writer_when_messages_were_deleted(
    deleted: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = TableReport("users")
    report.source_rows, report.replica_rows, report.mismatched_keys = 2, 1, 1
    show(Result(Lsn(1), [report], [], deleted))
    causes = "causes: a value that was too large for a message, a change that causes no event, another writer to the replica\n"
    fix = (
        "fix: run walbridge verify again with --repair, which makes just these rows right; or copy all rows again:\n"
        "     stop the mirror, then start it once with --again users\n"
    )
    assert capsys.readouterr().out.endswith(f"(--limit shows more)\n{words}{causes}{fix}")
