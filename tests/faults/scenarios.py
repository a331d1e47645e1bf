"""The named faults: what each promises, what happens, and to which world."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.faults.database_people import DATABASE_PEOPLE
from tests.faults.kills import BRIDGE_ACTS, MIRROR_ACTS, NATS_ACTS, POSTGRES_ACTS, SEVERAL_ACTS
from tests.faults.large import ROW_ACTS, TRANSACTION_ACTS
from tests.faults.nats_people import EDIT_ACTS, NATS_PEOPLE, REMOVAL_ACTS
from tests.faults.networks import NETWORK_ACTS
from tests.faults.operators import OPERATORS
from tests.faults.positions import FAILOVER_ACTS, LAGGING_ACTS, SLOT_ACTS
from tests.faults.rights import NATS_RIGHTS, POSTGRES_RIGHTS
from tests.faults.rivals import RIVAL_ACTS
from tests.faults.setting import (
    BEHIND,
    CLUSTER,
    DURABLE,
    FAILOVER,
    IMPATIENT,
    POWER,
    SMALL_NATS,
    SMALL_POSTGRES,
    USERS,
    USUAL,
    Setting,
)  # fmt: skip
from tests.faults.stores import ANEW_ACTS, CLUSTER_ACTS, FULL_ACTS, POWER_ACTS
from tests.faults.world import Act

EXACT = "each change once, in order"
TOLD = "every loss is reported, the rest is exact"


@dataclass(frozen=True)
class Scenario:
    """Acts of one kind. After each run of some of them the world comes to rest and is judged."""

    name: str
    promise: str
    fault: str
    acts: tuple[tuple[Act, ...], ...]
    """Groups: one is drawn first, then one of its acts."""
    setting: Setting = USUAL
    acts_per_run: int = 4
    runs_max: int = 1_000_000
    """In one call of the command: less where a run costs much."""
    allows_gaps: bool = False
    """Whether gap events may come at all."""

    def choose(self, dice: random.Random, only: frozenset[str] = frozenset()) -> Act | None:
        """One act, of those named in `only` if there are names; None if none of them is among these."""
        groups = [[act for act in group if not only or act.__name__ in only] for group in self.acts]
        groups = [group for group in groups if group]
        return dice.choice(dice.choice(groups)) if groups else None


_PROCESSES = (*BRIDGE_ACTS, *MIRROR_ACTS, *POSTGRES_ACTS, *NATS_ACTS, *SEVERAL_ACTS)
SCENARIOS = (
    Scenario("bridge", EXACT, "`kill -9`, stop and SIGSTOP of the bridge", (BRIDGE_ACTS,)),
    Scenario("mirror", EXACT, "`kill -9` and SIGSTOP of a mirror", (MIRROR_ACTS,)),
    Scenario("postgres", EXACT, "`kill -9`, stop and SIGSTOP of PostgreSQL", (POSTGRES_ACTS,)),
    Scenario("nats", EXACT, "`kill -9`, stop and SIGSTOP of nats-server", (NATS_ACTS,)),
    Scenario("pairs", EXACT, "two or three of these at once", (SEVERAL_ACTS,)),
    Scenario("network", EXACT, "connections cut at any byte, reset, half-closed, silent, slow, at 1 byte per second",
             (NETWORK_ACTS,)),
    Scenario("rivals", EXACT, "two or three bridges at once; a frozen one wakes after another has taken over", (RIVAL_ACTS,)),
    Scenario("rights", EXACT, "the role loses LOGIN, REPLICATION, SELECT or its connections, and gets them back",
             (POSTGRES_RIGHTS,)),
    Scenario("slots", TOLD, "the slot is dropped, holds too much WAL, or is idle for too long", (SLOT_ACTS,), acts_per_run=1,
             allows_gaps=True),
    Scenario("purges", TOLD, "messages are deleted or purged, also by subject; records are removed", (REMOVAL_ACTS,),
             allows_gaps=True),
    Scenario("edits", TOLD, "the stream's limits, retention and permissions to publish are edited and edited back",
             (EDIT_ACTS,), allows_gaps=True),
    Scenario("anew", TOLD, "the stream is deleted, sometimes with its record", (ANEW_ACTS,), acts_per_run=2, allows_gaps=True),
    Scenario("power-cut", TOLD, "NATS comes back with an older copy of its store", (POWER_ACTS,), acts_per_run=2,
             allows_gaps=True),
    Scenario("power-cut-held", EXACT, "the same, with `--confirm-hold` longer than what is missing", (POWER_ACTS,),
             setting=POWER, acts_per_run=2),
    Scenario("power-cut-durable", EXACT, "the same, with `--publish durable`", (POWER_ACTS,), setting=DURABLE, acts_per_run=2),
    Scenario("durable", EXACT, "`kill -9`, stop and SIGSTOP of all, with `--publish durable`", (_PROCESSES,), setting=DURABLE),
    Scenario("nats-rights", EXACT, "the bridge's user in NATS loses subjects, and gets them back", (NATS_RIGHTS,), setting=USERS),
    Scenario("cluster", EXACT, "three replicas: leaders killed, rolling restarts, the majority away, another leader",
             (CLUSTER_ACTS,), setting=CLUSTER, acts_per_run=3),
    Scenario("impatient", EXACT, "bridge, nats-server or network frozen or silent for longer than a `wal_sender_timeout` of 1 s",
             (BRIDGE_ACTS, NATS_ACTS, NETWORK_ACTS), setting=IMPATIENT),
    Scenario("full-nats", EXACT, "the disk under NATS is full", (FULL_ACTS,), setting=SMALL_NATS, acts_per_run=2),
    Scenario("full-postgres", EXACT, "the disk under PostgreSQL is full", (FULL_ACTS,), setting=SMALL_POSTGRES, acts_per_run=2),
    Scenario("failover", EXACT, "the primary is killed and a standby that it waits for is promoted", (FAILOVER_ACTS,),
             setting=FAILOVER, acts_per_run=1),
    Scenario("failover-lagging", TOLD, "a standby that lacks what the bridge was sent is promoted", (LAGGING_ACTS,),
             setting=BEHIND, acts_per_run=1, allows_gaps=True),
    Scenario("large-transaction", EXACT, "a transaction of 2,000,000 rows, and a `kill -9` in the middle of it", (TRANSACTION_ACTS,),
             acts_per_run=1, runs_max=1),
    Scenario("large-row", TOLD, "a row of more than 1 GiB as text, given up as the error message says", (ROW_ACTS,), acts_per_run=1,
             runs_max=1, allows_gaps=True),
    Scenario("random", TOLD, "all of these, and what administrators and operators do, at random",
             ((*_PROCESSES, *NETWORK_ACTS, *RIVAL_ACTS), (*DATABASE_PEOPLE, *NATS_PEOPLE, *OPERATORS)), acts_per_run=25,
             allows_gaps=True),
)  # fmt: skip
