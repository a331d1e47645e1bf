"""The batch that is being gathered, and where it may be cut. No I/O, no trio."""

from __future__ import annotations

from typing import NamedTuple

from actors.messages import (
    Batch,
    EventKind,
    PublishedChange,
    RowChange,
    RowRun,
    SchemaChange,
    TransactionRun,
    Truncated,
)
from actors.positions import NO_LSN, Lsn, Position
from actors.wire.jetstream import OutMessage


class _End(NamedTuple):
    """The draft as it was when its last complete transaction ended."""

    messages: int
    size_bytes: int
    counts: dict[EventKind, int]
    position: Position | None
    end_lsn: Lsn
    oldest_us: int
    newest_us: int
    schemas: int
    published: int
    transactions: int


class BatchDraft:
    """Messages in their order, and what counts once they are stored.

    `end_transaction` notes that everything so far belongs to complete transactions: `cut_complete` then takes no more than
    that, and what an open transaction has added since stays.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.messages: list[OutMessage] = []
        self.size_bytes = 0
        self.end_lsn = NO_LSN
        self.schemas: list[SchemaChange] = []
        self.published: list[PublishedChange] = []
        self._counts: dict[EventKind, int] = {}
        self._position: Position | None = None  # of the last message, unless that is `_newest`
        self._newest: RowChange | Truncated | None = None
        self._oldest_us = self._newest_us = 0
        self._end: _End | None = None
        self._transactions = 0

    @property
    def is_empty(self) -> bool:
        return not self.messages and not self.end_lsn

    @property
    def is_complete(self) -> bool:
        """No transaction is open after the last message."""
        return self._end is not None and self._end.messages == len(self.messages) and self._newest is None

    def count_rows(self, run: RowRun, newest: int, count: int) -> None:
        """Count events of a run, the last of which is of row `newest`."""
        if not self._oldest_us:
            self._oldest_us = run.txn.commit_us
        self._counts[run.kind] = self._counts.get(run.kind, 0) + count
        self._newest = run.change(newest)

    def count_transactions(self, run: TransactionRun, first: int, count: int) -> None:
        """Count the events of `count` transactions from `first` on."""
        if not self._oldest_us:
            self._oldest_us = run.txns[first].commit_us
        self._counts[run.kind] = self._counts.get(run.kind, 0) + count
        self._newest = run.change(first + count - 1)

    def add_messages(self, messages: list[OutMessage], size: int) -> None:
        """Add messages of events that are counted on their own."""
        self.messages += messages
        self.size_bytes += size

    def add_message(self, message: OutMessage, size: int) -> None:
        """Add a message of events that are counted on their own."""
        self.messages.append(message)
        self.size_bytes += size

    def count(self, change: RowChange | Truncated) -> None:
        """Count an event, the newest one."""
        counts = self._counts
        counts[change.kind] = counts.get(change.kind, 0) + 1
        self._newest = change
        if not self._oldest_us:
            self._oldest_us = change.txn.commit_us

    def add_other(self, message: OutMessage, size: int, position: Position) -> None:
        """Add a message that is not a row event."""
        self.add_message(message, size)
        self._settle()
        self._position = position

    def end_transaction(self) -> None:
        """Note that no transaction is open after the last message."""
        self._settle()
        if len(self.messages) > (self._end.messages if self._end is not None else 0):
            self._transactions += 1
        self._end = _End(
            len(self.messages), self.size_bytes, dict(self._counts), self._position, self.end_lsn, self._oldest_us,
            self._newest_us, len(self.schemas), len(self.published), self._transactions,
        )  # fmt: skip

    def cut(self, *, is_whole: bool = True) -> Batch:
        """Take everything. `is_whole` is False when a transaction is open after the last message."""
        self._settle()
        batch = Batch(
            self.messages, self.size_bytes, self._counts, self._position, self.end_lsn, self._oldest_us, self._newest_us,
            tuple(self.schemas), tuple(self.published), is_whole, self._transactions,
        )  # fmt: skip
        self._start()
        return batch

    def cut_complete(self) -> Batch | None:
        """Take the complete transactions; None if there is nothing of them."""
        end = self._end
        if end is None or not (end.messages or end.end_lsn):
            return None
        if self.is_complete:
            return self.cut()
        batch = Batch(
            self.messages[: end.messages], end.size_bytes, end.counts, end.position, end.end_lsn, end.oldest_us,
            end.newest_us, tuple(self.schemas[: end.schemas]), tuple(self.published[: end.published]), True, end.transactions,
        )  # fmt: skip
        self._settle()
        counts = {kind: count - end.counts.get(kind, 0) for kind, count in self._counts.items()}
        counts = {kind: count for kind, count in counts.items() if count}
        rest = self.messages[end.messages :], self.size_bytes - end.size_bytes, self._position
        schemas, published = self.schemas[end.schemas :], self.published[end.published :]
        commit_us = self._newest_us if counts else 0  # one transaction is open: all events of the rest have its commit time
        self._start()
        self.messages, self.size_bytes, self._position = rest
        self.schemas, self.published, self._counts = schemas, published, counts
        self._oldest_us = self._newest_us = commit_us
        return batch

    def _settle(self) -> None:
        """Take position and times from the newest change: once per batch or transaction, not per event."""
        newest, self._newest = self._newest, None
        if newest is not None:
            self._position = Position(newest.txn.commit_lsn, newest.seq)
            self._newest_us = newest.txn.commit_us
