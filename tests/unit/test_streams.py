"""The streams as the bridge creates them, field by field as JetStream takes them."""

from __future__ import annotations

from typing import Any

import pytest

from actors.startup.streams import cdc_config, init_config, requests_config

UNSET: dict[str, Any] = {
    "discard_new_per_subject": False, "max_age": 0, "max_msgs_per_subject": -1, "max_msg_size": -1, "no_ack": False,
    "duplicate_window": 0, "sealed": False, "deny_delete": False, "deny_purge": False, "allow_rollup_hdrs": False,
}  # fmt: skip
"""What nats-py always writes: the server's own defaults."""
KEPT = {"storage": "file", "retention": "limits", "discard": "old", "num_replicas": 3, "allow_direct": True}
NEW = (2, 15, 1)


@pytest.mark.parametrize(
    ("version", "more"),
    [
        ((2, 10, 0), {}),
        ((2, 12, 0), {"allow_atomic": True}),
        (NEW, {"allow_atomic": True, "allow_batched": True}),
    ],
)
def test_the_stream_of_changes(version: tuple[int, int, int], more: dict[str, bool]) -> None:
    expected = {"name": "CDC", "subjects": ["cdc.>"], "max_age": 691_200_000_000_000, "max_bytes": 10 << 30}
    assert cdc_config("CDC", 3, version).as_dict() == UNSET | KEPT | expected | {"duplicate_window": 10_000_000_000} | more


def test_a_stream_of_another_name_maps_its_prefix_away() -> None:
    config = cdc_config("EVEN", 3, NEW).as_dict()
    assert config["subjects"] == ["_EVEN.cdc.>"]
    assert config["subject_transform"] == {"src": "_EVEN.cdc.>", "dest": "cdc.>"}


def test_the_stream_of_snapshots_takes_arrays_where_they_are_asked_for() -> None:
    expected = {"name": "INIT", "subjects": ["init.>"], "max_age": 604_800_000_000_000, "max_bytes": 8 << 30}
    assert init_config(3).as_dict() == UNSET | KEPT | expected
    assert init_config(3, "array").as_dict()["subjects"] == ["init.>", "snapshot.init.>", "snapshot.data.>"]


def test_the_stream_of_requests_keeps_one_of_each_table() -> None:
    expected = {
        "name": "REQUESTS", "subjects": ["snapshot.request.>"], "discard": "new", "discard_new_per_subject": True,
        "max_msgs_per_subject": 1, "max_msgs": 10_000, "max_msg_size": 1024,
    }  # fmt: skip
    assert requests_config(3).as_dict() == UNSET | KEPT | expected
