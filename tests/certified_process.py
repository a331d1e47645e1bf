"""`walbridge mirror`, or another keeper of such a SQLite file, as a consumer that `walbridge certify` can try.

`python certified_process.py [COMMAND ...]`: runs it, with the file and the tables as its last arguments, and answers with the rows.
"""

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
    mirror = [sys.executable, "-m", "walbridge", "mirror", "--tables", ",".join(TABLES), "--to", f"sqlite:///{REPLICA}"]
    keeper = await asyncio.create_subprocess_exec(*([*sys.argv[1:], str(REPLICA), *TABLES] if sys.argv[1:] else mirror))
    client = await nats.connect(os.environ["NATS_URL"], max_reconnect_attempts=-1, reconnect_time_wait=0.05)

    async def answer(request) -> None:
        try:
            body = held()
        except sqlite3.Error:  # its tables are being made
            body = {"tables": {}}
        await request.respond(json.dumps(body).encode())

    await client.subscribe("walbridge.certify", cb=answer)
    sys.exit(await keeper.wait())


asyncio.run(main())
