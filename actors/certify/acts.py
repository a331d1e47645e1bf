"""What a hostile history consists of: acts upon a small source, on NATS and on the consumer, chosen by a seed. No I/O.

An act is data with dice of its own, so that some can be left out: so the smallest history that breaks a consumer is found.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import NamedTuple

from actors.certify.history import Step
from actors.certify.source import Column, Row, Source, Table, Transaction
from actors.contract.subjects import cdc_event

ID = Column("id", "integer", pk=True)
SHAPES = {
    "users": (ID, Column("name", "text"), Column("note", "text"), Column("age", "integer")),
    "orders": (ID, Column("user_id", "integer"), Column("total", "numeric"), Column("done", "boolean")),
}
"""The tables that a consumer can be asked to keep."""
NAMES = ("Ada", "Bob", "", "ä ☃", "a'b\"c", "x" * 40)


class Act(NamedTuple):
    """One act."""

    kind: str
    seed: int


class Stage:
    """Where acts happen: the source, and what can be done to NATS and to the consumer."""

    def __init__(self, source: Source, tables: tuple[str, ...]) -> None:
        self.source, self.tables = source, tables
        self.wanted: list[Step] = []
        """Steps that are to happen, in order: a history's own, `cut connections`, `forget consumers`, `restart server`."""

    def transaction(self, dice: random.Random, changes_max: int = 5) -> None:
        """A transaction of random changes."""
        with self.source.transaction(self.wanted.append) as t:
            for _ in range(dice.randint(1, changes_max)):
                name = dice.choice(self.tables)
                _change(t, self.source.tables[name], dice)


def _values(table: Table, dice: random.Random) -> Row:
    values: Row = {}
    for column in table.columns:
        if column.pk:
            continue
        if dice.random() < 0.15:
            values[column.name] = None
        elif column.type == "integer":
            values[column.name] = dice.choice((0, -1, dice.randint(1, 10**6)))
        elif column.type == "boolean":
            values[column.name] = dice.random() < 0.5
        elif column.type == "numeric":
            values[column.name] = f"{dice.randint(-999, 999)}.{dice.randint(0, 99):02}"
        else:
            values[column.name] = dice.choice(NAMES) + str(dice.randint(0, 99))
    return values


def _insert(t: Transaction, table: Table, dice: random.Random) -> None:
    free = [key for key in range(1, 30) if (key,) not in table.rows]
    if free:
        t.insert(table.name, **{**_values(table, dice), table.pk[0]: dice.choice(free)})


def _change(t: Transaction, table: Table, dice: random.Random) -> None:
    keys = sorted(key[0] for key in table.rows)
    kind = dice.choices(
        ("insert", "update", "unchanged", "key", "delete", "swap", "again", "truncate"), (8, 6, 3, 3, 3, 1, 1, 0.4)
    )[0]
    if kind == "insert" or len(keys) < 2:
        _insert(t, table, dice)
        return
    key = dice.choice(keys)
    values = _values(table, dice)
    if kind == "update":
        t.update(table.name, key, **values)
    elif kind == "unchanged":
        kept = dice.choice([column.name for column in table.columns if not column.pk])
        del values[kept]
        t.update(table.name, key, unchanged=(kept,), **values)
    elif kind == "key":
        free = [one for one in range(1, 40) if one not in keys]
        t.update(table.name, key, **{**(values if dice.random() < 0.5 else {}), table.pk[0]: dice.choice(free)})
    elif kind == "swap":
        one, other = dice.sample(keys, 2)
        t.swap_keys(table.name, one, other, 99, (dice.choice([column.name for column in table.columns if not column.pk]),))
    elif kind == "truncate":
        t.truncate(table.name)
    else:
        t.delete(table.name, key)
        if kind == "again":
            t.insert(table.name, **{**values, table.pk[0]: key})


def _gap(stage: Stage, dice: random.Random) -> None:
    table = stage.source.tables[dice.choice(stage.tables)]
    table.lost = True
    stage.transaction(dice)
    stage.wanted.append(stage.source.gap(table.name))


def _suspend(stage: Stage, dice: random.Random) -> None:
    stage.wanted.append(stage.source.suspend(dice.choice(stage.tables)))
    stage.transaction(dice)


def _shape(stage: Stage, dice: random.Random) -> None:
    table = stage.source.tables[dice.choice(stage.tables)]
    more = [column for column in table.columns if column.name.startswith("c_")]
    if more and dice.random() < 0.4:
        stage.source.alter(table.name, [column for column in table.columns if column != more[-1]])
    else:
        added = Column(f"c_{dice.randint(1, 10**6)}", "integer")
        stage.source.alter(table.name, [*table.columns, added], lambda row: {**row, added.name: 7})
    with stage.source.transaction(stage.wanted.append) as t:
        _insert(t, table, dice)


def _other_table(stage: Stage, dice: random.Random) -> None:
    before = stage.source.tables[dice.choice(stage.tables)]
    stage.source.create(before.name, *before.columns)
    with stage.source.transaction(stage.wanted.append) as t:
        for _ in range(dice.randint(1, 3)):
            _insert(t, stage.source.tables[before.name], dice)
    # the bridge sees it in the catalog too, a little later
    stage.wanted.append(stage.source.publish(before.name, "changed", reason="another table has this name"))


def _publish(stage: Stage, dice: random.Random) -> None:
    table = stage.source.tables[dice.choice(stage.tables)]
    for key in dice.sample(sorted(table.rows), min(2, len(table.rows))):  # another row filter: no event tells of these rows
        del table.rows[key]
    stage.wanted.append(stage.source.publish(table.name, "changed"))


def _foreign(stage: Stage, dice: random.Random) -> None:
    source, name = stage.source, dice.choice(stage.tables)
    subject, lsn = cdc_event(name, "insert"), source.lsn + 0x40
    body = {
        "subject": subject, "table": name, "schema": "public", "operation": "INSERT", "relation_id": 1, "key": ["id"],
        "lsn": lsn,
        "xid": 1, "commit_ts": 1, "msg_id": f"{lsn:x}-0-{name}-insert", "seq": 0, "data": {"id": 66}, "last": True,
    }  # fmt: skip
    headers = dice.choice(({}, {"Nats-Msg-Id": f"order-{dice.randint(1, 10**9)}"}))
    stage.wanted.append(source.message(source.stream, subject, headers, body))


def _other_bridge(stage: Stage, dice: random.Random) -> None:
    _other_bridge_takes(stage, dice.choice(stage.tables))


def _other_bridge_takes(stage: Stage, name: str) -> None:
    table = stage.source.tables[name]
    rows, table.rows = table.rows, {}
    snapshot = stage.source.snapshot(name)
    snapshot.stream = "EVEN"
    stage.wanted += [snapshot.start(), *snapshot.chunks(), snapshot.meta()]
    table.rows = rows


def _snapshot(stage: Stage, dice: random.Random) -> None:
    """Another reader has asked for it."""
    serve(stage, dice.choice(stage.tables), dice)


def serve(stage: Stage, name: str, dice: random.Random) -> None:
    """Take a snapshot amid transactions."""
    if dice.random() < 0.2:
        _other_bridge_takes(stage, name)
    snapshot, table = stage.source.snapshot(name), stage.source.tables[name]
    for _ in range(dice.choice((0, 0, 1, 2))):
        stage.transaction(dice)
    if len(table.rows) > 1 and dice.random() < 0.5:  # applied once more, it would leave other rows
        with stage.source.transaction(stage.wanted.append) as t:
            one, other = dice.sample(sorted(key[0] for key in table.rows), 2)
            t.swap_keys(name, one, other, 99, [column.name for column in table.columns if not column.pk][:1])
    stage.wanted.append(snapshot.start())
    chunks = snapshot.chunks(dice.choice((2, 5, 100)))
    meta = snapshot.meta()
    middle = dice.randint(0, len(chunks))
    stage.wanted += chunks[:middle]
    if dice.random() < 0.5:
        stage.transaction(dice)
    stage.wanted += [*chunks[middle:], meta]


def _kill(stage: Stage, dice: random.Random) -> None:
    stage.wanted.append({"step": "stop"})
    for _ in range(dice.randint(0, 2)):
        stage.transaction(dice)
    stage.wanted.append({"step": "start"})


def _run_out(stage: Stage, dice: random.Random) -> None:
    stage.wanted.append({"step": "stop"})
    for _ in range(dice.randint(2, 4)):
        stage.transaction(dice)
    stream = stage.source.stream
    stage.wanted.append({"step": "purge", "stream": stream, "first_seq": stage.source.last_seq[stream]})
    stage.wanted.append({"step": "start"})


def _delete(stage: Stage, dice: random.Random) -> None:
    stage.wanted.append({"step": "stop"})
    stream = stage.source.stream
    first = stage.source.last_seq[stream] + 1
    for _ in range(3):
        stage.transaction(dice)
    gone = dice.randint(first, stage.source.last_seq[stream])
    stage.wanted += [{"step": "remove", "stream": stream, "seqs": [gone]}, {"step": "start"}]


def _doing(step: str) -> Callable[[Stage, random.Random], None]:
    def act(stage: Stage, dice: random.Random) -> None:
        stage.transaction(dice)
        stage.wanted.append({"step": step})
        stage.transaction(dice)

    return act


def _transaction(stage: Stage, dice: random.Random) -> None:
    for _ in range(dice.choice((1, 1, 1, 3))):
        stage.transaction(dice)


ACTS: dict[str, tuple[float, str, Callable[[Stage, random.Random], None]]] = {
    "transaction": (12, "transactions", _transaction),
    "gap": (1.5, "changes are lost, and a gap event says so", _gap),
    "suspend": (0.7, "a table is suspended until its next snapshot", _suspend),
    "shape": (1.5, "a column is added or dropped", _shape),
    "other table": (0.7, "another table takes the name", _other_table),
    "publish": (1, "the publication gets another row filter", _publish),
    "foreign": (1, "somebody else publishes on the table's subject", _foreign),
    "other bridge": (0.7, "another bridge takes a snapshot of a table of this name", _other_bridge),
    "snapshot": (0.7, "somebody else asks for a snapshot", _snapshot),
    "kill": (1, "the consumer is killed and started again", _kill),
    "run out": (0.5, "the consumer is killed, and the stream loses what it needs before it is started again", _run_out),
    "delete": (0.5, "the consumer is killed, and a message that it needs is deleted", _delete),
    "cut": (1.5, "the consumer's connections are cut", _doing("cut connections")),
    "forget": (1, "nats-server forgets the consumer's JetStream consumers", _doing("forget consumers")),
    "restart": (0.2, "nats-server is restarted", _doing("restart server")),
}
"""Kind -> weight, words, and what it does."""


def plan(seed: int, rounds: int, without: Collection[str] = ()) -> list[Act]:
    """The acts of a run; none of the kinds in `without`."""
    dice = random.Random(f"certify {seed}")
    kinds = [kind for kind in ACTS if kind not in without]
    chosen = dice.choices(kinds, [ACTS[kind][0] for kind in kinds], k=rounds)
    return [Act(kind, dice.getrandbits(32)) for kind in chosen]


def perform(act: Act, stage: Stage) -> None:
    """Let an act's steps be wanted next."""
    ACTS[act.kind][2](stage, random.Random(act.seed))
