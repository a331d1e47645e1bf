"""A consumer of one table that keeps its copy in a file: right without a fault, wrong with one. `consumer.py TABLE [FAULT]`."""

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path

import nats
from nats.js.api import ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

import walbridge
from walbridge import Gap, Insert, Published, SchemaChange, SnapshotChunk, SnapshotMeta, SnapshotStart, Truncate, Update

TABLE, FAULT = sys.argv[1], (*sys.argv[2:], "")[0]
FILE = Path(os.environ["WALBRIDGE_STATE"]) / "copy.json"
held = {"place": None, "tables": {TABLE: []}}


async def messages_after(place, js, stream, subjects):
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=place + 1, filter_subjects=subjects, idle_heartbeat=0.5
    )  # fmt: skip
    async for message in (await js.subscribe("", stream=stream, ordered_consumer=True, config=config)).messages:
        seq = message.metadata.sequence.stream
        if seq > place:
            place = seq
            yield seq, message


def records_in(message):
    headers = message.headers or {}
    if message.subject.startswith("cdc.") and FAULT != "foreign":
        found = headers.get("Nats-Msg-Id") or headers.get("Walbridge-Msg-Id") or ""
        if found.count("-") < 3:
            return []
    try:
        records = walbridge.decode_message(message.subject, headers, message.data)
    except Exception:
        return []
    return records[:1] if FAULT == "packed" else records


async def keep_asking(client):
    while True:
        await client.publish(f"snapshot.request.{TABLE}@CDC")
        await asyncio.sleep(5)


async def take_snapshot(client, js):
    start, rows = None, {}
    asked_at = (await js.stream_info("INIT")).state.last_seq
    asking = asyncio.create_task(keep_asking(client))
    async for _, message in messages_after(asked_at, js, "INIT", [f"init.*.{TABLE}", f"init.snap.{TABLE}.>"]):
        for record in records_in(message):
            if getattr(record, "stream", "CDC") != "CDC" and FAULT != "other-bridge":
                continue
            if isinstance(record, SnapshotStart):
                asking.cancel()
                start, rows = record, {}
            elif start and isinstance(record, SnapshotChunk) and record.snapshot_id == start.snapshot_id:
                rows |= {walbridge.key_of(row, pk_of(start)): row for row in record.rows}
            elif start and isinstance(record, SnapshotMeta) and record.snapshot_id == start.snapshot_id:
                return start, rows
    return None


def pk_of(start):
    return [column.name for column in start.columns if column.pk]


def apply(rows, event, pk):
    if FAULT == "unchanged" and isinstance(event, Update):
        event = event._replace(row=event.row | dict.fromkeys(event.unchanged), unchanged=())
    if FAULT == "old" and isinstance(event, Update):
        rows[walbridge.key_of(event.row, pk)] = rows.get(walbridge.key_of(event.row, pk), {}) | event.row
    elif FAULT == "redelivery" and isinstance(event, Insert) and walbridge.key_of(event.row, pk) in rows:
        rows[object()] = event.row
    elif FAULT == "redelivery":
        with contextlib.suppress(KeyError, ValueError):
            walbridge.apply_to(rows, event, pk)
    elif FAULT == "snapshot-lsn" and isinstance(event, Insert | Update):
        row = rows.pop(walbridge.key_of(getattr(event, "old", None) or event.row, pk), {}) | event.row
        rows[walbridge.key_of(row, pk)] = row
    elif FAULT == "swap" and isinstance(event, Update) and event.old:
        row = rows.get(walbridge.key_of(event.old, pk), {}) | event.row
        rows[walbridge.key_of(row, pk)] = row
        last_old.append(walbridge.key_of(event.old, pk))
        if event.last:
            for key in last_old:
                rows.pop(key, None)
            last_old.clear()
    elif FAULT == "truncate" and isinstance(event, Truncate):
        pass
    else:
        walbridge.apply_to(rows, event, pk)


last_old = []


def stored_copy():
    if not FILE.exists():
        return None
    saved = json.loads(FILE.read_text())
    columns = tuple(walbridge.Column(*column) for column in saved["columns"])
    rows = {walbridge.key_of(row, [c.name for c in columns if c.pk]): row for row in saved["rows"]}
    return saved, columns, rows


def show(place, rows, created, message_id, columns, snapshot_lsn, version):
    held.update(place=place, tables={TABLE: list(rows.values())})
    saved = {
        "place": place, "created": created, "id": message_id, "rows": held["tables"][TABLE], "columns": columns,
        "snapshot_lsn": snapshot_lsn, "version": version,
    }  # fmt: skip
    if FAULT == "place-before-rows" and FILE.exists() and place % 3:
        saved["rows"] = json.loads(FILE.read_text())["rows"]
    FILE.with_suffix(".new").write_text(json.dumps(saved))
    FILE.with_suffix(".new").replace(FILE)


async def why_out_of_date(client, js, saved):
    if FAULT == "history":
        return ""
    reply = await client.request("$JS.API.STREAM.INFO.CDC", b'{"deleted_details": true}')
    found = None
    with contextlib.suppress(NotFoundError):
        headers = (await js.get_msg("CDC", saved["place"])).headers or {}
        found = headers.get("Nats-Msg-Id") or ""
    return walbridge.is_out_of_date(
        saved["place"], saved["created"], json.loads(reply.data), message_id=saved["id"], found_id=found
    )


async def follow(client, js, again):
    stored = None if again else stored_copy()
    if stored and not await why_out_of_date(client, js, stored[0]):
        saved, columns, rows = stored
        place, lsn, version, message_id = saved["place"], saved["snapshot_lsn"], saved["version"], saved["id"]
        created = saved["created"]
    else:
        start, rows = await take_snapshot(client, js)
        place, lsn, version, columns = start.stream_seq, start.snapshot_lsn, start.version, start.columns
        message_id, created = "", json.loads((await client.request("$JS.API.STREAM.INFO.CDC", b"")).data)["created"]
    pk = [column.name for column in columns if column.pk]
    first, (restarts, begun_at) = place, (disconnects[0], place)
    show(place, rows, created, message_id, columns, lsn, version)
    async for seq, message in messages_after(place, js, "CDC", [f"cdc.{TABLE}.>", "cdc._bridge.>"]):
        for event in records_in(message):
            if isinstance(event, Gap):
                if TABLE in event.tables and FAULT != "gaps":
                    return
            elif isinstance(event, Published):
                if event.token == TABLE and walbridge.is_other_version(version, event.version) and FAULT != "published":
                    return
            elif not walbridge.counts(event, lsn) and FAULT != "snapshot-lsn":
                continue
            elif isinstance(event, SchemaChange):
                if [column[:2] for column in event.columns] != [column[:2] for column in columns] and FAULT != "shapes":
                    return
            else:
                try:
                    apply(rows, event, pk)
                except (KeyError, ValueError):
                    if FAULT in ("", "redelivery", "place-before-rows"):
                        return
        message_id = (message.headers or {}).get("Nats-Msg-Id", message_id) if records_in(message) else message_id
        show(seq, rows, created, message_id, columns, lsn, version)
        if FAULT == "redelivery" and disconnects[0] != restarts:
            restarts, begun_at = disconnects[0], first
            async for _, late in messages_after(begun_at, js, "CDC", [f"cdc.{TABLE}.>"]):
                for event in records_in(late):
                    if not isinstance(event, SchemaChange) and walbridge.counts(event, lsn):
                        apply(rows, event, pk)
                if late.metadata.sequence.stream >= seq:
                    break


disconnects = [0]


async def ignore(_error):
    pass


async def main():
    async def on_disconnect():
        disconnects[0] += 1

    client = await nats.connect(
        os.environ["NATS_URL"], max_reconnect_attempts=-1, reconnect_time_wait=0.05, disconnected_cb=on_disconnect,
        error_cb=ignore,
    )  # fmt: skip
    js = client.jetstream()

    async def answer(request):
        await request.respond(json.dumps(held, default=str).encode())

    await client.subscribe("walbridge.certify", cb=answer)
    again = False
    while True:
        try:
            await follow(client, js, again)
        except nats.errors.Error:  # a request without an answer: the connection was cut
            await asyncio.sleep(0.05)
            held["place"] = None
            continue
        held["place"], again = None, True


asyncio.run(main())
