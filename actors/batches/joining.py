"""Several small batches as one: what has gathered while JetStream was busy goes out together. No I/O, no trio."""

from __future__ import annotations

from typing import NamedTuple

from actors.messages import Batch


class BatchSize(NamedTuple):
    """How large an atomic batch may be: nats-server takes 1,000 messages, and recommends no more than a few megabytes."""

    messages_max: int = 1_000
    bytes_max: int = 4 * 1024 * 1024

    def can_join(self, first: Batch, second: Batch) -> bool:
        """Return whether two batches fit into one that ends with a transaction."""
        return (
            second.is_whole
            and len(first.messages) + len(second.messages) <= self.messages_max
            and first.size_bytes + second.size_bytes <= self.bytes_max
        )

    def is_half_full(self, batch: Batch) -> bool:
        """Return whether waiting for more would bring little."""
        return 2 * len(batch.messages) >= self.messages_max or 2 * batch.size_bytes >= self.bytes_max or not batch.is_whole


def joined(first: Batch, second: Batch) -> Batch:
    """Return one batch of two in their order."""
    counts = dict(first.counts)
    for kind, count in second.counts.items():
        counts[kind] = counts.get(kind, 0) + count
    return Batch(
        first.messages + second.messages, first.size_bytes + second.size_bytes, counts, second.position or first.position,
        max(first.end_lsn, second.end_lsn), first.oldest_commit_us or second.oldest_commit_us,
        second.newest_commit_us or first.newest_commit_us, first.schema_changes + second.schema_changes,
        first.published + second.published, True, first.transactions + second.transactions,
    )  # fmt: skip
