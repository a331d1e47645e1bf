"""What each setting of a stream or bucket leads to, and what the monitor makes of an edit."""

from __future__ import annotations

from typing import Any

import pytest

from actors.contract.subjects import BRIDGES, SCHEMAS
from actors.errors import ConfigError
from actors.settings.resolve import resolve
from actors.startup.stream_rules import (
    FIELDS,
    ROLE_OF_REQUESTS,
    Role,
    examine,
    role_of_bucket,
    role_of_changes,
    role_of_snapshots,
    roles_of,
    unknown_fields,
)
from actors.startup.streams import bucket_config, cdc_config, init_config, requests_config
from actors.stream_monitor import Watched
from actors.telemetry.telemetry import Telemetry
from tests.servers import ROOT

CDC, EVEN, INIT, ARRAYS = role_of_changes("CDC"), role_of_changes("EVEN"), role_of_snapshots("map"), role_of_snapshots("array")
RECORDS, SCHEMA_BUCKET = role_of_bucket(BRIDGES), role_of_bucket(SCHEMAS)
NEW = (2, 15, 1)
MADE: list[tuple[Role, dict[str, Any]]] = [
    (CDC, cdc_config("CDC", 1, NEW).as_dict()),
    (EVEN, cdc_config("EVEN", 1, NEW).as_dict()),
    (INIT, init_config(1).as_dict()),
    (ARRAYS, init_config(1, "array").as_dict()),
    (ROLE_OF_REQUESTS, requests_config(1).as_dict()),
    (RECORDS, bucket_config(BRIDGES, 1).as_dict()),
    (SCHEMA_BUCKET, bucket_config(SCHEMAS, 1).as_dict()),
]
OF = {role.name: config for role, config in MADE if role is not ARRAYS}
SECOND_NS, MIB = 10**9, 1 << 20


@pytest.mark.parametrize(("role", "config"), MADE, ids=lambda value: getattr(value, "name", ""))
def test_what_the_bridge_makes_is_as_it_wants_it(role: Role, config: dict[str, Any]) -> None:
    assert examine(role, config) == []
    assert unknown_fields(config | {"of_tomorrow": True}) == ["of_tomorrow"]


@pytest.mark.parametrize(
    ("role", "changes", "code"),
    [
        (CDC, {"retention": "interest"}, "WB235"),
        (CDC, {"retention": "workqueue"}, "WB235"),
        (CDC, {"sources": [{"name": "O"}]}, "WB236"),
        (CDC, {"mirror": {"name": "O"}}, "WB236"),
        (CDC, {"max_msgs_per_subject": 100_000}, "WB238"),
        (CDC, {"subjects": ["cdc.*.insert", "cdc.*.update"]}, "WB237"),
        (CDC, {"subjects": None}, "WB237"),
        (CDC, {"subject_transform": {"src": "", "dest": "x.>"}}, "WB234"),
        (CDC, {"subject_transform": {"src": "cdc.*.insert", "dest": "cdc.all.insert"}}, "WB234"),
        (EVEN, {"subject_transform": None}, "WB234"),
        (EVEN, {"subject_transform": {"src": "_EVEN.cdc.>", "dest": "even.>"}}, "WB234"),
        (EVEN, {"subjects": ["cdc.>"], "subject_transform": {"src": ">", "dest": "x.>"}}, "WB234"),
        (CDC, {"republish": {"src": "cdc.>", "dest": "$KV.{{wildcard(1)}}.x"}}, "WB236"),
        (CDC, {"republish": {"src": "cdc.>", "dest": ">"}}, "WB236"),
        (CDC, {"republish": {"src": "cdc.>", "dest": "{{wildcard(1)}}.cdc.x"}}, "WB236"),
        (EVEN, {"republish": {"src": "cdc.>", "dest": "_ODD.cdc.>"}}, "WB236"),
        (ARRAYS, {"subjects": ["init.>", "snapshot.>"], "max_msgs_per_subject": 1}, "WB238"),
        (INIT, {"max_msgs_per_subject": 1, "discard": "new", "discard_new_per_subject": True}, "WB236"),
        (RECORDS, {"max_age": 8 * 86400 * SECOND_NS}, "WB238"),
        (RECORDS, {"discard": "old", "max_msgs": 1}, "WB238"),
        (RECORDS, {"persist_mode": "async"}, "WB236"),
        (SCHEMA_BUCKET, {"sealed": True}, "WB236"),
        (SCHEMA_BUCKET, {"max_msg_size": 100}, "WB233"),
    ],
)
def test_refused(role: Role, changes: dict[str, Any], code: str) -> None:
    first = examine(role, OF[role.name] | changes)[0]
    assert (first.refused, first.code) == (True, code)
    assert role.name in first.what
    assert role.name in first.fix


@pytest.mark.parametrize(
    ("role", "changes"),
    [
        (CDC, {"storage": "memory"}),
        (CDC, {"max_age": SECOND_NS, "duplicate_window": SECOND_NS}),
        (CDC, {"max_msgs": 1}),
        (CDC, {"max_bytes": MIB}),
        (CDC, {"max_consumers": 1}),
        (INIT, {"consumer_limits": {"inactive_threshold": 10 * SECOND_NS}}),
        (INIT, {"max_msgs_per_subject": 1}),
        (INIT, {"max_msgs": 2}),
        (RECORDS, {"max_msgs_per_subject": 1}),
        (RECORDS, {"max_msgs": 20}),
        (SCHEMA_BUCKET, {"max_bytes": MIB}),
        (SCHEMA_BUCKET, {"max_age": SECOND_NS}),
        (ROLE_OF_REQUESTS, {"deny_purge": True}),
        (ROLE_OF_REQUESTS, {"retention": "workqueue"}),
        (ROLE_OF_REQUESTS, {"subjects": ["elsewhere"]}),
    ],
)
def test_warned_of(role: Role, changes: dict[str, Any]) -> None:
    (found,) = examine(role, OF[role.name] | changes)
    assert not found.refused
    assert found.problem.what == found.what


@pytest.mark.parametrize(
    ("role", "changes"),
    [
        (CDC, {"subjects": ["cdc.>", "outbox.>"], "subject_transform": {"src": "outbox.>", "dest": "o.>"}}),
        (CDC, {"subject_transform": {"src": "cdc.>", "dest": "cdc.>"}}),
        (EVEN, {"subjects": ["cdc.>"], "subject_transform": None}),
        (CDC, {"discard": "new"}),
        (CDC, {"duplicate_window": 8 * 3600 * SECOND_NS}),
        (CDC, {"max_age": 60 * SECOND_NS}),
        (CDC, {"republish": {"src": "cdc.>", "dest": "live.{{wildcard(1)}}"}}),
        (CDC, {"republish": {"src": "cdc.>", "dest": "live.>"}}),
        (CDC, {"republish": {"src": "cdc.>", "dest": "live.cdc.>"}}),
        (CDC, {"allow_msg_ttl": True, "allow_rollup_hdrs": True, "deny_delete": True, "deny_purge": True, "num_replicas": 3}),
        (CDC, {"max_bytes": -1, "max_msgs": -1, "max_msgs_per_subject": -1, "max_msg_size": -1, "max_consumers": -1}),
        (RECORDS, {"max_msgs_per_subject": 64, "max_bytes": 64 * MIB}),
        (RECORDS, {"max_msgs_per_subject": -1}),
    ],
)
def test_harmless(role: Role, changes: dict[str, Any]) -> None:
    assert examine(role, OF[role.name] | changes) == []


def test_the_monitor_ends_the_bridge_only_for_the_stream_of_changes() -> None:
    telemetry = Telemetry()
    config = resolve({}, {"DATABASE_URL": "postgresql://u@h/db", "NATS_URL": "nats://h"})
    roles = {role.name: role for role in roles_of(config)}
    assert list(roles) == ["CDC", "INIT", "KV_bridges", "KV_schemas", "REQUESTS"]
    watched = Watched(tuple(roles.values()), telemetry)
    for name, changes in (("KV_bridges", {"max_age": 1}), ("CDC", {"max_msgs": 1}), ("INIT", {"retention": "interest"})):
        watched.examine(roles[name], {"config": OF[name] | changes})
    assert {problem.code for problem in telemetry.problems.values()} == {"WB238", "WB239", "WB235"}
    since = {what: problem.since_unix_s for what, problem in telemetry.problems.items()}
    watched.examine(roles["KV_bridges"], {"config": OF["KV_bridges"] | {"max_age": 1}})
    assert {what: problem.since_unix_s for what, problem in telemetry.problems.items()} == since, "told once"
    watched.examine(roles["KV_bridges"], {"config": OF["KV_bridges"]})
    watched.examine(roles["INIT"], None)
    assert {problem.code for problem in telemetry.problems.values()} == {"WB239"}
    with pytest.raises(ConfigError) as caught:
        watched.examine(roles["CDC"], {"config": OF["CDC"] | {"no_ack": True, "max_msgs": 1}})
    assert (caught.value.code, caught.value.fix) == ("WB236", "nats stream edit CDC --ack")


def test_the_documents_table_names_every_field_that_has_a_rule() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    table = page[page.index("## Settings of streams and buckets") : page.index("## At 3 a.m.")]
    for field, rule in FIELDS.items():
        assert (f"`{field}" in table) == (rule.__name__ != "_harmless"), field
