"""`walbridge mirror` as a consumer that `walbridge certify` can try: runs it, and answers with the rows of its replica."""

import asyncio
import json
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import nats

TABLES = os.environ["WALBRIDGE_TABLES"].split(",")
REPLICA = Path(os.environ["WALBRIDGE_STATE"]) / "replica.db"


def held() -> dict:
    """What the replica holds, in one transaction."""
    if not REPLICA.exists():
        return {"tables": {}}
    with closing(sqlite3.connect(f"file:{REPLICA}?mode=ro", uri=True, isolation_level=None)) as replica:
        replica.row_factory = sqlite3.Row
        replica.execute("BEGIN")
        states = dict(map(tuple, replica.execute("SELECT token, state FROM _walbridge_tables")))
        tables = {}
        for name in TABLES:
            if replica.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone():
                tables[name] = [dict(row) for row in replica.execute(f'SELECT * FROM "{name}"')]
        place = replica.execute("SELECT stream_seq FROM _walbridge_position").fetchone()
        is_live = place is not None and all(states.get(name) == "live" for name in TABLES)
        return {"place": place[0] if is_live else None, "tables": tables}


async def main() -> None:
    flags = ("--tables", ",".join(TABLES), "--to", f"sqlite:///{REPLICA}")
    mirror = await asyncio.create_subprocess_exec(sys.executable, "-m", "walbridge", "mirror", *flags)
    client = await nats.connect(os.environ["NATS_URL"], max_reconnect_attempts=-1, reconnect_time_wait=0.05)

    async def answer(request) -> None:
        try:
            body = held()
        except sqlite3.Error:  # its tables are being made
            body = {"tables": {}}
        await request.respond(json.dumps(body).encode())

    await client.subscribe("walbridge.certify", cb=answer)
    sys.exit(await mirror.wait())


asyncio.run(main())
