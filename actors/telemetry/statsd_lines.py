"""The metrics of /metrics as lines of StatsD, with labels as tags in the way of DogStatsD. No I/O.

A counter is sent as what was added since, a gauge as it is, a histogram as the counters `_count` and `_sum`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import Metric

DATAGRAM_BYTES_MAX = 1432
"""What passes an Ethernet network in one piece."""


class StatsdLines:
    """Makes lines; remembers what the counters were."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, str], float] = {}

    def lines(self, families: Iterable[Metric]) -> Iterator[str]:
        """Yield a line per series. A counter that did not move has none; the first call sends all that it has counted."""
        for family in families:
            for sample in family.samples:
                tags = _tags(sample.labels)
                if sample.name.endswith("_bucket") or not math.isfinite(sample.value):
                    continue
                if family.type in ("counter", "histogram"):
                    added = sample.value - self._before.get((sample.name, tags), 0)
                    self._before[sample.name, tags] = sample.value
                    if added > 0:
                        yield f"{sample.name}:{_plain(added)}|c{tags}"
                elif sample.value < 0:  # with a sign it would be added to what the receiver has
                    yield f"{sample.name}:0|g{tags}"
                    yield f"{sample.name}:{_plain(sample.value)}|g{tags}"
                else:
                    yield f"{sample.name}:{_plain(sample.value)}|g{tags}"


def datagrams(lines: Iterable[str]) -> Iterator[bytes]:
    """Join lines to packets that the network does not have to cut. A longer line travels alone."""
    packet = b""
    for line in lines:
        text = line.encode()
        if packet and len(packet) + 1 + len(text) > DATAGRAM_BYTES_MAX:
            yield packet
            packet = b""
        packet = packet + b"\n" + text if packet else text
    if packet:
        yield packet


def _tags(labels: Mapping[str, str]) -> str:
    """`|#table:users,operation:insert`; what would end a tag, a line or the tags is written as _."""
    clean = [f"{name}:" + re.sub(r"[\s,|#:@]", "_", value) for name, value in labels.items()]
    return f"|#{','.join(clean)}" if clean else ""


def _plain(value: float) -> str:
    """Digits without an exponent, which a receiver may not know."""
    return str(int(value)) if value == int(value) else f"{value:.9f}".rstrip("0")
