"""What PostgreSQL's administrators, and applications, do to published tables."""

from __future__ import annotations

import random
import time

import psycopg

from tests.faults.tables import PUBLISHED_AS_EVER, TABLES
from tests.faults.world import DATABASE, Act, World

_PLAIN = ("keyed", "pair", "moods", "swap_a", "shaped")


def _some_time(dice: random.Random) -> None:
    time.sleep(
        dice.choice((0.0, dice.uniform(0, 1.5), dice.uniform(0, 1.5), dice.uniform(0, 35) if dice.random() < 0.15 else 0.0))
    )


def _there_and_back(name: str, there: str, back: str) -> Act:
    """An act that is undone after a while; `{t}` is a table."""

    def act(world: World, dice: random.Random) -> None:
        table = dice.choice(_PLAIN)
        world.sql(there.format(t=table))
        _some_time(dice)
        for more in (True, True, False):
            try:
                world.sql(back.format(t=table))
            except psycopg.errors.LockNotAvailable:
                if not more:
                    raise
            else:
                break

    act.__name__ = name
    return act


def publish_otherwise(world: World, dice: random.Random) -> None:
    """Filters and column lists; sometimes for good, until the next quiet point."""
    choices = (
        "keyed WHERE (id < 100)",
        "keyed (id, name)",
        "keyed (id, n, big) WHERE (id > 20)",
        "keyed",
        "keyed WHERE (id > 50)",
    )
    others = [name for name in TABLES if name != "keyed" and dice.random() < 0.9]
    world.sql(f"ALTER PUBLICATION cdc_pub SET TABLE {', '.join((dice.choice(choices), *others))}")
    _some_time(dice)
    if dice.random() < 0.6:
        world.sql(PUBLISHED_AS_EVER)


def publish_only_inserts(world: World, dice: random.Random) -> None:
    world.sql("ALTER PUBLICATION cdc_pub SET (publish = 'insert, update')")
    _some_time(dice)
    world.sql("ALTER PUBLICATION cdc_pub SET (publish = 'insert, update, delete, truncate')")


def make_anew(world: World, dice: random.Random) -> None:
    """DROP and CREATE under the same name, in one transaction or in several."""
    columns = "(id int PRIMARY KEY, v text)"
    statements = ("DROP TABLE swap_b", f"CREATE TABLE swap_b {columns}", "INSERT INTO swap_b VALUES (-1, 'new')",
                  "ALTER PUBLICATION cdc_pub ADD TABLE swap_b")  # fmt: skip
    if dice.random() < 0.5:
        world.sql("; ".join(statements))
        return
    for statement in statements:
        world.sql(statement)
        time.sleep(dice.uniform(0, 0.5))


def swap_names(world: World, _dice: random.Random) -> None:
    world.sql("ALTER TABLE swap_a RENAME TO swap_c; ALTER TABLE swap_b RENAME TO swap_a; ALTER TABLE swap_c RENAME TO swap_b")


def rewrite_values(world: World, dice: random.Random) -> None:
    world.sql(dice.choice((
        "ALTER TABLE keyed ALTER n TYPE numeric USING n * 2", "ALTER TABLE shaped ALTER v TYPE text USING v || '!'",
        "ALTER TABLE bag ALTER d TYPE bigint", "ALTER TABLE bag ALTER d TYPE int USING 5",
    )))  # fmt: skip


def change_type(world: World, dice: random.Random) -> None:
    label = f"mood{dice.randrange(10**6)}"
    ((old,),) = world.query("SELECT (enum_range(NULL::mood))[1]::text")
    world.sql(dice.choice((f"ALTER TYPE mood RENAME VALUE '{old}' TO '{label}'", f"ALTER TYPE mood ADD VALUE '{label}'")))


def touch_partitions(world: World, dice: random.Random) -> None:
    if dice.random() < 0.5:
        world.sql(dice.choice(("TRUNCATE parts_1", "TRUNCATE parts_2")))
        return
    world.sql("ALTER TABLE parts DETACH PARTITION parts_2")
    _some_time(dice)
    world.sql(
        "DELETE FROM parts WHERE id >= 100; ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES FROM (100) TO (1000000)"
    )


def keep_house(world: World, dice: random.Random) -> None:
    world.sql(dice.choice(("VACUUM FULL {t}", "VACUUM {t}", "ANALYZE {t}", "CHECKPOINT")).format(t=dice.choice(_PLAIN)))


def lock_a_table(world: World, dice: random.Random) -> None:
    with psycopg.connect(world.postgres.dsn(DATABASE), connect_timeout=5) as session:
        session.execute("SET lock_timeout = '3s'")
        session.execute(f"LOCK TABLE {dice.choice(_PLAIN)} IN ACCESS EXCLUSIVE MODE".encode())
        time.sleep(dice.uniform(0.5, 6))
        if dice.random() < 0.5:
            world.bridge.kill()
            world.bridge.start(ready=False)
            time.sleep(dice.uniform(0.5, 4))


def add_around_a_writer(world: World, dice: random.Random) -> None:
    """A transaction has written when its table is taken out and put back, and commits afterwards."""
    with psycopg.connect(world.postgres.dsn(DATABASE), connect_timeout=5) as session:
        session.execute("SET lock_timeout = '3s'")
        session.execute("INSERT INTO pair SELECT 5000 + g, 'open' || txid_current(), 0 FROM generate_series(1, 5) g")
        world.sql("ALTER PUBLICATION cdc_pub DROP TABLE pair")
        time.sleep(dice.uniform(0, 1))
        world.sql("ALTER PUBLICATION cdc_pub ADD TABLE pair")
        if dice.random() < 0.5:
            world.bridge.post("/snapshot/pair")
        time.sleep(dice.choice((0, 1, 7)))
        session.execute("UPDATE pair SET v = v + 1 WHERE a > 5000")


def add_and_drop_a_table(world: World, dice: random.Random) -> None:
    name = f"guest_{dice.randrange(10**6)}"
    world.sql(
        f"CREATE TABLE {name} (id int PRIMARY KEY, v text); INSERT INTO {name} SELECT g, 'x' FROM generate_series(1, 50) g"
    )
    world.sql(f"ALTER PUBLICATION cdc_pub ADD TABLE {name}")
    world.sql(f"INSERT INTO {name} VALUES (0, 'y'); UPDATE {name} SET v = 'z' WHERE id < 5")
    _some_time(dice)
    world.sql(f"DROP TABLE {name}")


def drop_the_slot(world: World, dice: random.Random) -> None:
    """The loss is accepted by a person, later."""
    world.to_accept |= {"WB107", "WB108"}
    for _ in range(40):
        try:
            world.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'cdc_slot' AND active;"
                      "SELECT pg_drop_replication_slot('cdc_slot')")  # fmt: skip
            break
        except psycopg.errors.ObjectInUse:
            time.sleep(0.05)
    else:
        return
    time.sleep(dice.uniform(0, 2))
    world.wait(lambda: "cdc_slot" in world.slots() and world.bridge.get("/ready")[0] == 200, 40)


def set_the_role(world: World, dice: random.Random) -> None:
    """Settings that a role may have, which end sessions or statements early."""
    setting = dice.choice((
        "statement_timeout = '50ms'", "idle_in_transaction_session_timeout = '50ms'", "idle_session_timeout = '100ms'",
        "transaction_timeout = '50ms'", "default_transaction_read_only = on", "default_transaction_isolation = 'serializable'",
        "lock_timeout = '1ms'", "search_path = ''", "datestyle = 'German'", "timezone = 'Asia/Tokyo'", "bytea_output = 'escape'",
        "intervalstyle = 'iso_8601'", "extra_float_digits = '-5'",
    ))  # fmt: skip
    world.sql(f"ALTER ROLE walbridge SET {setting}")
    world.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'walbridge'")
    time.sleep(dice.uniform(1, 8))
    world.sql("ALTER ROLE walbridge RESET ALL")
    if dice.random() < 0.5:
        world.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'walbridge'")


def write_too_large_a_value(world: World, dice: random.Random) -> None:
    """Of a key that is too large for a message the table is suspended; a row that only has such a value lacks it."""
    size = dice.choice((40_000, 1_500_000))
    if dice.random() < 0.4:
        world.sql(f"INSERT INTO bag VALUES (-7, repeat('k', {size}), 0)")
        world.sql("DELETE FROM bag WHERE a = -7")
        return
    world.sql(f"INSERT INTO keyed VALUES (-{dice.randrange(1, 50)}, 'large', 1, repeat('v', {size})) ON CONFLICT DO NOTHING")
    if dice.random() < 0.5:
        world.sql("UPDATE keyed SET name = 'still large' WHERE id < 0")


THERE_AND_BACK: tuple[Act, ...] = (
    _there_and_back("take_out_and_put_back", "ALTER PUBLICATION cdc_pub DROP TABLE {t}", "ALTER PUBLICATION cdc_pub ADD TABLE {t}"),
    _there_and_back("rename_and_back", "ALTER TABLE {t} RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO {t}"),
    _there_and_back("move_and_back", "ALTER TABLE {t} SET SCHEMA attic", "ALTER TABLE attic.{t} SET SCHEMA public"),
    _there_and_back("change_identity", "ALTER TABLE {t} REPLICA IDENTITY FULL", "ALTER TABLE {t} REPLICA IDENTITY DEFAULT"),
    _there_and_back("without_identity", "ALTER TABLE {t} REPLICA IDENTITY NOTHING", "ALTER TABLE {t} REPLICA IDENTITY DEFAULT"),
)  # fmt: skip
DATABASE_PEOPLE: tuple[Act, ...] = (
    *THERE_AND_BACK, publish_otherwise, publish_only_inserts, make_anew, swap_names, rewrite_values, change_type,
    touch_partitions, keep_house, lock_a_table, add_around_a_writer, add_and_drop_a_table, drop_the_slot, set_the_role,
    write_too_large_a_value,
)  # fmt: skip
