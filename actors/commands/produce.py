"""The command line of `walbridge produce`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from actors.sample.producer import Producer

app = App(
    name="produce",
    help="Write to the sample tables users, orders and test_types: load for trying out, demonstrations and tests.",
    help_format="plaintext",
    version_flags=[],
    default_parameter=Parameter(show_default=False),
)

Json = Annotated[bool, Parameter(negative="", help="the result as JSON")]
EnvFile = Annotated[Path | None, Parameter(help="NAME=value lines; the environment beats them")]
Seed = Annotated[str | None, Parameter(help="a number: the same rows each time")]
TableName = Annotated[str, Parameter(help="users, orders or test_types [users]")]


def _producer(seed: str | None, as_json: bool, env_file: Path | None) -> Producer:
    from actors.sample.producer import Producer, parse_count  # noqa: PLC0415
    from actors.settings.resolve import resolve  # noqa: PLC0415  (--version and health need no libpq)

    number = None if seed is None else parse_count("--seed", seed, low=0)
    return Producer(resolve({}, os.environ, env_file).postgres, seed=number, as_json=as_json)


@app.command
def bulk(
    rows: Annotated[str, Parameter(help="how many", allow_leading_hyphen=True)],
    /,
    *,
    table: TableName = "users",
    batch: Annotated[str, Parameter(help="rows a transaction [1000]")] = "1000",
    seed: Seed = None,
    json: Json = False,
    env_file: EnvFile = None,
) -> int:
    """Insert so many rows, as fast as PostgreSQL takes them."""
    return _producer(seed, json, env_file).bulk(rows, table, batch)


@app.command
def stream(
    *,
    every: Annotated[str, Parameter(help="time from one transaction to the next [1s]")] = "1s",
    take: Annotated[str | None, Parameter(help="so many transactions [until stopped]")] = None,
    rows: Annotated[str, Parameter(help="rows a transaction [1]")] = "1",
    table: TableName = "users",
    seed: Seed = None,
    json: Json = False,
    env_file: EnvFile = None,
) -> int:
    """Insert rows at a steady pace."""
    return _producer(seed, json, env_file).stream(every, take, rows, table)


@app.command
def mixed(
    *,
    rate: Annotated[str, Parameter(help="changed rows a second [500]")] = "500",
    seconds: Annotated[str, Parameter(help="how long [60]")] = "60",
    seed: Seed = None,
    json: Json = False,
    env_file: EnvFile = None,
) -> int:
    """Inserts, updates, changes of keys, deletes and rollbacks on users and orders, in transactions of 1 to 10 changes."""
    return _producer(seed, json, env_file).mixed(rate, seconds)


@app.command
def crud(*, seed: Seed = None, json: Json = False, env_file: EnvFile = None) -> int:
    """Insert, update and delete one row of test_types: array, matrix, jsonb, numeric."""
    return _producer(seed, json, env_file).crud()


@app.command
def check(*, json: Json = False, env_file: EnvFile = None) -> int:
    """Connect and count the rows of the sample tables."""
    return _producer(None, json, env_file).check()
