"""The tables, how they are published when nobody interferes, and what applications write to them."""

from __future__ import annotations

import random

TABLES: dict[str, str] = {
    "keyed": "(id int PRIMARY KEY, name text, n numeric, big text)",
    "pair": "(a int, b text, v int, PRIMARY KEY (b, a))",
    "bag": "(a int, b text, d int)",
    "wide": "(id int PRIMARY KEY, big text, doc jsonb, v int)",
    "moods": "(id int PRIMARY KEY, m mood, tags mood[])",
    "many": "(id int PRIMARY KEY, v int)",
    "swap_a": "(id int PRIMARY KEY, v text)",
    "swap_b": "(id int PRIMARY KEY, v text)",
    "shaped": "(id int PRIMARY KEY, v text)",
    "parts": "(id int PRIMARY KEY, v text) PARTITION BY RANGE (id)",
}
FULL = ("bag", "wide")
SETUP = "\n".join((
    "CREATE TYPE mood AS ENUM ('sad', 'calm', 'happy'); CREATE SCHEMA attic; GRANT USAGE ON SCHEMA attic TO walbridge;",
    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO walbridge;",
    *(f"CREATE TABLE {name} {columns};" for name, columns in TABLES.items()),
    "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (-1000000) TO (100);",
    "CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (1000000);",
    *(f"ALTER TABLE {name} REPLICA IDENTITY FULL;" for name in FULL),
    *(f"ALTER TABLE {name} ALTER big SET STORAGE EXTERNAL;" for name in ("keyed", "wide")),
    "INSERT INTO keyed SELECT g, 'n' || g, g / 3.0, repeat(md5(g::text), 100) FROM generate_series(0, 200) g;",
    "INSERT INTO bag SELECT g % 20, 'same', g % 3 FROM generate_series(1, 100) g;",
    f"CREATE PUBLICATION cdc_pub FOR TABLE {', '.join(TABLES)} WITH (publish_via_partition_root);",
))  # fmt: skip
PUBLISHED_AS_EVER = f"ALTER PUBLICATION cdc_pub SET TABLE {', '.join(TABLES)}"
TEXTS = ("", "x", "ä ☃", "it''s", '{1,"2"}', "\\N\t\\t\r\n\\.\n")
# {i}, {j}: small numbers, often the same; {t}: a text
_CHANGES = """
INSERT INTO keyed SELECT {i} + g, {t}, {j} / 7.0, repeat(md5({t}), {j} * 20) FROM generate_series(0, {j} * 3) g ON CONFLICT DO NOTHING
UPDATE keyed SET name = {t} WHERE id BETWEEN {i} AND {i} + 3
UPDATE keyed SET id = id + 1000 WHERE id = {i}
UPDATE keyed SET id = id - 1000, name = {t} WHERE id BETWEEN 1000 AND 1000 + {i}
UPDATE keyed SET big = repeat(md5({t}), 100 + {j}) WHERE id = {i}
DELETE FROM keyed WHERE id BETWEEN {i} AND {i} + {j} % 4
INSERT INTO pair SELECT {i} + g, {t}, {j} FROM generate_series(0, {j}) g ON CONFLICT DO NOTHING
UPDATE pair SET v = v + 1 WHERE a = {i}
UPDATE pair SET a = -a WHERE a BETWEEN {i} AND {i} + 5
DELETE FROM pair WHERE a BETWEEN {i} AND {i} + 9
INSERT INTO bag SELECT {i} % 20, 'same', {j} FROM generate_series(0, {j}) g
UPDATE bag SET b = {t} WHERE ctid IN (SELECT ctid FROM bag WHERE a = {i} % 20 LIMIT 2)
DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE a = {i} % 20 LIMIT 12)
INSERT INTO wide VALUES ({i}, repeat(md5({t}), 100), '{{"a": [1, 2.50, null], "b": {j}}}', {j}) ON CONFLICT DO NOTHING
UPDATE wide SET v = v + 1 WHERE id BETWEEN {i} AND {i} + 3
UPDATE wide SET id = id + 1000 WHERE id = {i}
DELETE FROM wide WHERE id IN ({i}, {i} + 1000)
INSERT INTO moods SELECT {i}, e, ARRAY[e] FROM unnest(enum_range(NULL::mood)) e LIMIT 1 ON CONFLICT DO NOTHING
DELETE FROM moods WHERE id = {i}
INSERT INTO many SELECT g, {j} FROM generate_series({i} * 10, {i} * 10 + 400) g ON CONFLICT (id) DO UPDATE SET v = many.v + 1
INSERT INTO swap_a VALUES ({i}, {t}) ON CONFLICT (id) DO UPDATE SET v = {t}
INSERT INTO swap_b VALUES ({i}, {t}) ON CONFLICT (id) DO UPDATE SET v = {t}
DELETE FROM swap_a WHERE id < {i} - 100
INSERT INTO shaped VALUES ({i}, {t}) ON CONFLICT (id) DO UPDATE SET v = {t}
DELETE FROM shaped WHERE id = {i}
INSERT INTO parts VALUES ({i}, {t}) ON CONFLICT (id) DO UPDATE SET v = {t}
UPDATE parts SET id = 199 - id WHERE id = {i}
DELETE FROM parts WHERE id = {i}
""".strip().splitlines()
RARE = (
    *(f"TRUNCATE {name}" for name in TABLES), "TRUNCATE keyed, pair",
    "ALTER TABLE shaped ADD COLUMN IF NOT EXISTS extra int DEFAULT 7", "ALTER TABLE shaped DROP COLUMN IF EXISTS extra",
    "ALTER TABLE shaped ADD COLUMN IF NOT EXISTS more text", "ALTER TABLE shaped DROP COLUMN IF EXISTS more",
)  # fmt: skip


def change(dice: random.Random) -> str:
    """A statement of an application."""
    if dice.random() < 0.004:
        return dice.choice(RARE)
    text = f"'{dice.choice(TEXTS)}{dice.randrange(30)}'"
    return dice.choice(_CHANGES).format(i=dice.randrange(200), j=dice.randrange(10), t=text)
