"""Lines of StatsD: counters as what was added, packets that the network does not cut."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from actors.telemetry.statsd_lines import DATAGRAM_BYTES_MAX, StatsdLines, datagrams


@given(st.lists(st.lists(st.integers(0, 10**12), min_size=2, max_size=2), max_size=20))
def test_what_a_daemon_adds_up_is_what_was_counted(steps: list[list[int]]) -> None:
    lines, counted, added = StatsdLines(), [0, 0], {"a": 0, "b": 0}
    for step in steps:
        counted = [before + more for before, more in zip(counted, step, strict=True)]
        family = CounterMetricFamily("events", "", labels=["table"])
        for table, count in zip("ab", counted, strict=True):
            family.add_metric([table], count)
        for line in lines.lines([family]):
            name, value, table = line.partition(":")[0], line.partition(":")[2].partition("|")[0], line[-1]
            assert name == "events_total"
            added[table] += int(value)
    assert list(added.values()) == counted


@given(st.text(), st.floats(allow_nan=True, allow_infinity=True))
def test_no_label_and_no_value_breaks_a_line(label: str, value: float) -> None:
    family = GaugeMetricFamily("level", "", labels=["table"])
    family.add_metric([label], value)
    made = list(StatsdLines().lines([family]))
    assert len(made) == (0 if not math.isfinite(value) else 1 if value >= 0 else 2)
    for line in made:
        assert len(line.splitlines()) == 1
        name, kind, tags = line.split("|")
        assert (kind, tags.count(":"), tags.count("#")) == ("g", 1, 1)
        assert name.partition(":")[0] == "level"
        assert "e" not in name.partition(":")[2], "an exponent"


@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1, max_size=600)))
def test_packets_hold_all_lines_in_order_and_are_no_longer_than_they_may_be(lines: list[str]) -> None:
    packets = list(datagrams(lines))
    assert [line for packet in packets for line in packet.decode().split("\n")] == lines
    for packet in packets:
        assert len(packet) <= DATAGRAM_BYTES_MAX or b"\n" not in packet
