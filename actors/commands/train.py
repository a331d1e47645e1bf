"""`walbridge train`: a dictionary for one table, from its own rows, and what it saves."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated

import trio

from actors.clients.nats.connection import SinkRefused, open_nats
from actors.clients.nats.dictionaries import SUFFIX, publish_dictionaries
from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.publications import PublishedTable, published_tables, with_row_filter
from actors.clients.postgres.table_sample import TableSample, sample_table
from actors.contract.compression import dictionary_id
from actors.contract.subjects import DICTIONARIES, bucket_keys
from actors.contract.table_token import find_token, table_name
from actors.dictionaries.training import TooLittle, Trained, train_dictionary
from actors.errors import ConfigError, Fatal, Transient, WalbridgeError
from actors.process import most_telling
from actors.settings.config import Config
from actors.settings.flags import EnvFile, Flags, option, takes_settings
from actors.settings.resolve import resolve
from actors.settings.setting import OTHER, SNAPSHOTS, SOURCE
from actors.startup.publication_problems import not_readable
from actors.startup.streams import ensure_bucket
from actors.telemetry.log import set_up_logging
from actors.telemetry.quantities import listed

SIZE_MIN_BYTES, SIZE_MAX_BYTES = 1024, 256 * 1024
ROWS_MIN = 200
ROWS_MAX = 20_000
SAMPLE_BYTES_MAX = 24 * 1024 * 1024


@takes_settings(
    pub="the table's publication", dictionaries="folder in which the dictionary is written",
    nats_context="for --upload: context of the nats command line, by name or file",
    stream="CDC stream of the bridge that will use it",
)  # fmt: skip
def train(
    flags: Flags,
    *,
    table: Annotated[str, option(SOURCE, "a published table: users, sales.orders", "TABLE")],
    size: Annotated[str, option(SNAPSHOTS, "of the dictionary [16k]", "BYTES")] = "16k",
    upload: Annotated[bool, option(SNAPSHOTS, "also put the dictionary into KV dictionaries")] = False,
    json: Annotated[bool, option(OTHER, "the report as JSON")] = False,
    env_file: EnvFile = None,
) -> int:
    """Train a dictionary, measure it, write it, and upload it if asked to."""
    config = resolve(flags, os.environ, env_file)
    set_up_logging(config.log.level, config.log.format, config.secrets)
    return train_table(config, table, size, upload=upload, as_json=json)


def parse_size(text: str) -> int:
    """`16k` or a number of bytes. Raises ConfigError."""
    match = re.fullmatch(r"(\d{1,7})([kK]?)", text)
    size = int(match[1]) * (1024 if match[2] else 1) if match else 0
    if not SIZE_MIN_BYTES <= size <= SIZE_MAX_BYTES:
        raise ConfigError("WB002", f"--size: {text!r} is not a dictionary's size; give 1k-256k, e.g. 16k")
    return size


def train_table(config: Config, table: str, size: str, *, upload: bool, as_json: bool) -> int:
    """Sample, train, measure, write the file, upload it if asked to, and report on stdout.

    Raises ConfigError for a table that is not published or has too few rows, Fatal for what servers or the disk refuse.
    """
    size_bytes = parse_size(size)
    try:
        sample = trio.run(_sample, config, table)
        try:
            trained = train_dictionary(sample, size_bytes)
        except TooLittle as exc:
            raise _too_few(table, len(sample.rows), str(exc)) from exc
        file = config.snapshots.dictionaries / f"{trained.token}{SUFFIX}"
        write_atomically(file, trained.dictionary)
        if upload:
            trio.run(_upload, config, trained)
    except (WalbridgeError, BaseExceptionGroup) as exc:
        raise as_fatal(exc) from exc
    key = dictionary_id(trained.token, trained.dictionary, config.publish.stream)
    if as_json:
        print(json.dumps(_as_json(trained, file, key, uploaded=upload)))
    else:
        print(_report(trained, sample, file, key, uploaded=upload))
    return 0


async def _sample(config: Config, table: str) -> TableSample:
    connection = await PgConnection.connect(config.postgres, application_name="walbridge train")
    with closing(connection):
        publication = config.source.publication
        published = _find(await published_tables(connection, publication), table, publication)
        if published.unreadable:
            ((role,),) = await connection.query("SELECT current_user")
            problem = not_readable([published], role or "")
            assert problem is not None
            means = "a dictionary is trained on the table's rows"
            raise ConfigError(problem.code, problem.what, said=problem.said, means=means, fix=problem.fix)
        published = await with_row_filter(connection, publication, published)
        sample = await sample_table(connection, published, rows_max=ROWS_MAX, bytes_max=SAMPLE_BYTES_MAX)
    if len(sample.rows) < ROWS_MIN:
        raise _too_few(table, len(sample.rows))
    return sample


def _find(tables: list[PublishedTable], name: str, publication: str) -> PublishedTable:
    by_token = {table.token: table for table in tables}
    token = find_token(name, by_token)
    if token is None:
        there = (
            f"the publication has {listed(sorted(map(table_name, by_token)))}"
            if by_token
            else "the publication has no table, or does not exist"
        )
        raise ConfigError(
            "WB520", f"no table {name} in publication {publication}", said=there,
            means="a dictionary is trained on the rows that events will carry",
            fix="give --table one of those, or --pub the publication of that table",
        )  # fmt: skip
    return by_token[token]


def _too_few(table: str, rows: int, said: str = "") -> ConfigError:
    return ConfigError(
        "WB521", f"{rows:,} rows of {table} are too few to train a dictionary", said=said,
        means=f"{ROWS_MIN} are the least, some thousand are good: half of them only test what the other half trained",
        fix="train when the table has more rows, with a smaller --size, or on a copy with similar rows",
    )  # fmt: skip


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically, and make its folder. Raises Fatal."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as exc:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise Fatal(
            "WB522",
            f"cannot write {path}",
            said=exc.strerror or str(exc),
            fix="--dictionaries with a folder that you may write to",
        ) from exc


async def _upload(config: Config, trained: Trained) -> None:
    async with open_nats(config.nats, set()) as nats:
        js = JetStream(nats)
        try:
            await ensure_bucket(js, DICTIONARIES, config.nats.replicas)
            ready = await publish_dictionaries(js, {trained.token: trained.dictionary}, config.publish.stream)
        except (JetStreamError, SinkRefused) as exc:
            raise _not_uploaded(exc.said) from exc
    if not ready:
        raise _not_uploaded("the line above says why")


def _not_uploaded(said: str) -> Fatal:
    return Fatal(
        "WB523", "the dictionary cannot be put into KV dictionaries", said=said,
        means="its file is written; a bridge that runs with --zstd or --zstd-events uploads it when it starts",
        fix=f"nats kv add {DICTIONARIES} --history=10, and allow the NATS user to publish to {bucket_keys(DICTIONARIES)}",
    )  # fmt: skip


def as_fatal(exc: BaseException) -> BaseException:
    """A transient error as a Fatal: a command reports it instead of waiting for servers. A bug stays as it is."""
    error = most_telling(exc)
    if isinstance(error, Transient):
        return Fatal(error.code, error.what, said=error.said, means=error.means, fix=error.fix)
    return error if isinstance(error, Fatal) else exc


# -- the report

_NAMES = {"msgpack": "MessagePack", "json": "JSON"}


def _report(trained: Trained, sample: TableSample, file: Path, key: str, *, uploaded: bool) -> str:
    of = f" of about {sample.rows_expected:,}" if sample.rows_expected > len(sample.rows) else ""
    lines = [
        f"{trained.token}: trained on {trained.rows_trained:,} rows{of}, tested on {trained.rows_tested:,} others",
        "",
        f"{'saved on':<22}{'messages':>10}{'bytes':>12}{'zstd':>9}{'with the dictionary':>22}{'as sent*':>11}",
    ]
    for one in trained.figures:
        name = f"{one.what}s, {_NAMES[one.encoding]}"
        lines.append(
            f"{name:<22}{one.messages:>10,}{one.plain_bytes:>12,}{one.saved(one.zstd_bytes):>9.1%}"
            f"{one.saved(one.dictionary_bytes):>22.1%}{one.saved(one.sent_bytes):>11.1%}"
        )
    lines.append("* with the header lines that name the dictionary")
    event = trained.figures[0]
    lines += ["", f"{len(trained.dictionary):,} bytes written to {file}"]
    if uploaded:
        lines.append(f"uploaded to KV {DICTIONARIES} as {key}")
    if event.sent_bytes >= event.plain_bytes:
        lines.append("the dictionary saves nothing on events: do not use it")
    else:
        lines.append(
            f"a bridge uses the dictionary from its next start: walbridge --zstd-events{_folder_flag(file, trained.token)}"
        )
    return "\n".join(lines)


def _folder_flag(file: Path, token: str) -> str:
    folder = str(file).removesuffix(f"{token}{SUFFIX}").rstrip("/") or "/"
    return "" if folder == "dictionaries" else f" --dictionaries {shlex.quote(folder)}"


def _as_json(trained: Trained, file: Path, key: str, *, uploaded: bool) -> Mapping[str, object]:
    return {
        "table": trained.token,
        "file": str(file),
        "bytes": len(trained.dictionary),
        "dictionary_id": key,
        "uploaded": uploaded,
        "rows_trained": trained.rows_trained,
        "rows_tested": trained.rows_tested,
        "figures": [
            one._asdict()
            | {"zstd_us": round(one.zstd_us, 2), "dictionary_us": round(one.dictionary_us, 2)}
            | {
                "zstd_saved": round(one.saved(one.zstd_bytes), 4),
                "dictionary_saved": round(one.saved(one.dictionary_bytes), 4),
                "sent_saved": round(one.saved(one.sent_bytes), 4),
            }
            for one in trained.figures
        ],
    }
