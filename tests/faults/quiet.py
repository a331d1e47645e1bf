"""The verdict at a quiet point: nobody interferes any more, and everything must become equal."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial

from tests.evidence import judge
from tests.faults.tables import PUBLISHED_AS_EVER, TABLES
from tests.faults.world import DATABASE, World
from tests.snapshots import ask
from tests.watched_mirrors import WatchedMirror

LIVE_S, DRAINED_S = 240.0, 120.0
LOOKED_AT_AGAIN_S = 40.0
"""The bridge looks at the publication every 30 s; a difference that is older is silent."""


class Quiet:
    """Brings a world to rest, compares, and lets it go on."""

    def __init__(self, world: World) -> None:
        """Nothing happens yet."""
        self._world = world
        self.judged: Counter[str] = Counter()
        """What was compared, over all quiet points."""

    def look(self) -> list[str]:
        """What is wrong."""
        world = self._world
        world.writers.pause()
        world.heal()
        self._undo()
        if not world.wait(lambda: world.bridge.get("/ready")[0] == 200, DRAINED_S):
            return [f"the bridge is not ready: {world.bridge.get('/ready')[1]}\n{world.bridge.log()[-3000:]}"]
        world.to_accept.clear()  # a loss was accepted, or there was none
        self._act_as_needed()
        ask(world.nats.url, "nobody_knows_this")  # have the publication looked at
        world.sql("INSERT INTO pair VALUES (-1, 'quiet', 0) ON CONFLICT (b, a) DO UPDATE SET v = pair.v + 1")
        if not world.wait_until_confirmed(DRAINED_S):
            return [f"not drained: {world.bridge.get('/status')[1]}\n{world.bridge.log()[-3000:]}"]
        evidence = world.witness.finish()
        verdict = judge(evidence)
        self.judged.update(
            expected=len(evidence.expected), samples=len(evidence.samples), gaps=len(evidence.gaps), holes=len(evidence.holes),
            **{f"missing, {reason}": count for reason, count in verdict.excused.items()},
        )  # fmt: skip
        evidence.settle()
        wrong = [*verdict.faults, *world.crashes()]
        for mirror in world.mirrors:
            wrong += self._compare(mirror)
        return wrong

    def _undo(self) -> None:
        """Undo what was left: tables and publication as ever, no row larger than a message, no setting of the role."""
        world = self._world
        undo = partial(world.sql, lock_timeout="30s")  # a snapshot may hold the table, and wait for this very statement
        if world.nats.max_payload is not None:
            world.nats.max_payload = None
            world.nats.restart()
        tables = {name for (name,) in world.query("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")}
        if "elsewhere" in tables and len(gone := set(TABLES) - tables) == 1:
            undo(f"ALTER TABLE elsewhere RENAME TO {gone.pop()}")
        for (name,) in world.query("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'attic'::regnamespace"):
            undo(f"ALTER TABLE attic.{name} SET SCHEMA public")
        if "swap_b" not in tables:
            undo(f"CREATE TABLE swap_b {TABLES['swap_b']}")
        if world.query("SELECT 1 FROM pg_class WHERE relname = 'parts_2' AND NOT relispartition"):
            undo("DELETE FROM parts WHERE id >= 100;"
                      "ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES FROM (100) TO (1000000)")  # fmt: skip
        for name in ("keyed", "pair", "moods", "swap_a", "shaped"):
            undo(f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT")
        undo("ALTER ROLE walbridge RESET ALL; GRANT SELECT ON ALL TABLES IN SCHEMA public TO walbridge")
        undo("ALTER PUBLICATION cdc_pub SET (publish = 'insert, update, delete, truncate')")
        published = world.query(
            "SELECT c.relname FROM pg_publication_rel p JOIN pg_class c ON c.oid = p.prrelid WHERE prqual IS NULL AND prattrs IS NULL"
        )
        if sorted(name for (name,) in published) != sorted(TABLES):
            undo(PUBLISHED_AS_EVER)
        undo("DELETE FROM keyed WHERE id < 0; DELETE FROM bag WHERE length(b) > 1000")

    def _act_as_needed(self) -> None:
        """Do what the documents say that a person must do.

        Snapshots of suspended tables, new copies of rows that lack values, no copies of tables that are gone for good.
        """
        world = self._world
        for mirror in world.mirrors:
            gone = f"SELECT local_schema, local_name FROM {mirror.own('tables')} WHERE state = 'unpublished'"
            for schema, name in mirror.query(gone):
                if name not in TABLES:
                    mirror.change(f'DROP TABLE IF EXISTS "{schema}"."{name}"' if schema else f'DROP TABLE IF EXISTS "{name}"')
        for token in world.bridge.status().get("suspended_tables", ()):
            world.bridge.post(f"/snapshot/{token}")
        if omitted := sorted(world.witness.omitted & set(TABLES)):
            world.witness.omitted.clear()
            for mirror in world.mirrors:
                mirror.stop()
                mirror.start_with("--again", ",".join(omitted))

    def _compare(self, mirror: WatchedMirror) -> list[str]:
        world, kind = self._world, mirror.to.partition(":")[0]
        begun = time.monotonic()
        while True:
            world.wait(mirror.is_ready, 5)
            done = mirror.verify(world.postgres.dsn(DATABASE), "--tables", ",".join(TABLES), "--timeout", "60")
            if done.returncode == 0:
                return []
            waited = time.monotonic() - begun
            silent = mirror.is_ready() and waited > LOOKED_AT_AGAIN_S
            if silent or waited > LIVE_S:
                how = "differs and is ready" if silent else "does not become live"
                return [
                    f"mirror in {kind} {how}: {done.stdout}\n{done.stderr}\n{mirror.get('/ready')[1]}\n{mirror.log()[-2500:]}"
                ]
            time.sleep(2)
