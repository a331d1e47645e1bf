"""The command line: flags and environment to one Config, logging, exit codes."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Group, MissingArgumentError, Parameter, UnknownOptionError, UnusedCliTokensError
from cyclopts.validators import Number

from actors import __version__
from actors.commands.produce import app as produce
from actors.errors import ConfigError, Fatal

if TYPE_CHECKING:
    from actors.settings.config import Config

EPILOGUE = """\
Environment: walbridge help env     An error by its code: walbridge help WB107

Examples:
  walbridge demo
  walbridge mirror --tables users --to sqlite:///replica.db
  DATABASE_URL=postgresql://bridge@db/app NATS_URL=nats://nats walbridge
"""

EXAMPLES = {
    "mirror": "walbridge mirror --tables users --to sqlite:///replica.db",
    "verify": "walbridge verify --to sqlite:///replica.db",
    "snapshot": "walbridge snapshot users",
    "export": "walbridge export alerts",
    "train": "walbridge train --table users",
    "produce bulk": "walbridge produce bulk 1000",
}
"""For who leaves out what a command cannot do without."""

SOURCE = Group("Source", sort_key=1)
NATS = Group("Publishing", sort_key=2)
SNAPSHOTS = Group("Snapshots and compression", sort_key=3)
HTTP = Group("HTTP", sort_key=4)
MIRROR = Group("Replica", sort_key=5)
OTHER = Group("Settings", sort_key=6)

app = App(
    name="walbridge",
    help="walbridge: every change of your PostgreSQL tables, in order, once, in NATS JetStream",
    help_epilogue=EPILOGUE,
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
    default_parameter=Parameter(show_default=False),
)


@app.default
@app.command(name="run")
def run(
    *,
    slot: Annotated[str | None, Parameter(group=SOURCE, help="replication slot, created if missing [cdc_slot]")] = None,
    pub: Annotated[str | None, Parameter(group=SOURCE, help="publication, must exist [cdc_pub]")] = None,
    temporary_slot: Annotated[
        bool,
        Parameter(group=SOURCE, negative="", help="the slot ends with the bridge; each start stores a gap event (previews)"),
    ] = False,
    accept_gap: Annotated[
        bool, Parameter(group=SOURCE, negative="", help="after changes were lost for good: store the gap event and go on")
    ] = False,
    embedded: Annotated[
        str | None,
        Parameter(group=SOURCE, help="start PostgreSQL and NATS from the 'embedded' extra, data kept in this folder"),
    ] = None,
    stream: Annotated[str | None, Parameter(group=NATS, help="CDC stream; a second bridge gets its own [CDC]")] = None,
    nats_context: Annotated[
        str | None, Parameter(group=NATS, help="context of the nats command line, by name or file [env NATS_CONTEXT]")
    ] = None,
    publish: Annotated[str | None, Parameter(group=NATS, help="auto, fast or plain [auto]")] = None,
    pack: Annotated[str | None, Parameter(group=NATS, help="up to N events of a transaction in a message [1]")] = None,
    json: Annotated[bool, Parameter(group=NATS, negative="", help="JSON instead of MessagePack")] = False,
    arrays: Annotated[
        str | None, Parameter(group=NATS, help="literal: PostgreSQL's text; list: nested lists [literal]")
    ] = None,
    snapshot_format: Annotated[
        str | None, Parameter(group=SNAPSHOTS, help="map: a map a row; array: arrays in the columns' order [map]")
    ] = None,
    zstd: Annotated[bool, Parameter(group=SNAPSHOTS, negative="", help="compress chunks of snapshots")] = False,
    zstd_events: Annotated[
        bool, Parameter(group=SNAPSHOTS, negative="", help="compress events of tables that have a dictionary")
    ] = False,
    dictionaries: Annotated[
        str | None, Parameter(group=SNAPSHOTS, help="folder of {table}.zstd.dict files [dictionaries]")
    ] = None,
    port: Annotated[str | None, Parameter(group=HTTP, help="HTTP telemetry [9090, env BRIDGE_PORT]")] = None,
    bind: Annotated[str | None, Parameter(group=HTTP, help="HTTP address [127.0.0.1]")] = None,
    env_file: Annotated[Path | None, Parameter(group=OTHER, help="NAME=value lines; the environment beats them")] = None,
    print_config: Annotated[
        bool, Parameter(group=OTHER, negative="", help="show each value and where it came from, and end")
    ] = False,
) -> int:
    """Stream changes until stopped. The default when no command is given."""
    from actors.settings.resolve import resolve  # noqa: PLC0415  (--version and health need none of this)

    flags = {
        "slot": slot, "pub": pub, "accept_gap": accept_gap, "temporary_slot": temporary_slot,
        "nats_context": nats_context, "stream": stream, "publish": publish, "pack": pack,
        "json": json, "arrays": arrays, "snapshot_format": snapshot_format, "zstd": zstd, "zstd_events": zstd_events,
        "dictionaries": dictionaries, "port": port, "bind": bind,
    }  # fmt: skip
    if embedded is not None and print_config:
        raise ConfigError("WB002", "--print-config: shows the settings for servers of your own; leave out --embedded")
    if embedded is not None:
        from actors.commands.run_embedded import run_embedded  # noqa: PLC0415

        return run_embedded(embedded, flags, env_file)
    config = resolve(flags, os.environ, env_file)
    if print_config:
        show_config(config.origins)
        return 0
    return start(config)


def start(config: Config) -> int:
    """Run the bridge with its log set up."""
    from actors.bridge import run as run_bridge  # noqa: PLC0415
    from actors.telemetry.log import set_up_logging  # noqa: PLC0415

    set_up_logging(config.log.level, config.log.format, config.secrets)
    return run_bridge(config)


def show_config(origins: tuple[tuple[str, str, str], ...]) -> None:
    """A line a setting: name, value, where it came from."""
    widths = [max(len(row[i]) for row in origins) for i in (0, 1)]
    for name, value, origin in origins:
        print(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}".rstrip())


@app.command
def health(
    *,
    port: Annotated[str, Parameter(group=HTTP, help="of the running bridge [9090, env BRIDGE_PORT]")] = "",
    bind: Annotated[str, Parameter(group=HTTP, help="of the running bridge")] = "127.0.0.1",
) -> int:
    """Exit 0 while the bridge is streaming, 1 with the reason when it is not: for HEALTHCHECK and probes."""
    from actors.commands.health import check_health  # noqa: PLC0415

    variable = os.environ.get("BRIDGE_PORT")
    return check_health(bind, port or variable or "9090", "--port" if port or not variable else "BRIDGE_PORT")


@app.command
def status(
    *,
    port: Annotated[str, Parameter(group=HTTP, help="of the running bridge [9090, env BRIDGE_PORT]")] = "",
    url: Annotated[str, Parameter(group=HTTP, help="of one elsewhere, instead of --port [http://127.0.0.1:9090]")] = "",
    json: Annotated[bool, Parameter(group=OTHER, negative="", help="as JSON, a line a look with --watch")] = False,
    watch: Annotated[bool, Parameter(group=OTHER, negative="", help="look every second until Ctrl-C")] = False,
) -> int:
    """What a running bridge is doing: state, rates, positions, WAL held, snapshots, problems. Exit 0 while it streams."""
    from actors.commands.status import show_status  # noqa: PLC0415

    if url and port:
        raise ConfigError("WB002", "--port: the address of --url has one; leave out either")
    if port and not (port.isdecimal() and 1 <= int(port) <= 65535):
        raise ConfigError("WB002", f"--port: {port!r} is not a port; give 1-65535, e.g. 9091")
    address = url or f"http://127.0.0.1:{port or os.environ.get('BRIDGE_PORT') or 9090}"
    return show_status(address, as_json=json, watch=watch)


@app.command
def cleanup(
    *,
    slot: Annotated[str | None, Parameter(group=SOURCE, help="of the bridge to remove [cdc_slot]")] = None,
    pub: Annotated[str | None, Parameter(group=SOURCE, help="its publication, which stays [cdc_pub]")] = None,
    stream: Annotated[str | None, Parameter(group=NATS, help="its CDC stream [CDC]")] = None,
    nats_context: Annotated[
        str | None, Parameter(group=NATS, help="context of the nats command line, by name or file [env NATS_CONTEXT]")
    ] = None,
    slot_only: Annotated[bool, Parameter(group=OTHER, negative="", help="remove the slot alone, leave NATS as it is")] = False,
    yes: Annotated[bool, Parameter(group=OTHER, negative="", help="do not ask")] = False,
    force: Annotated[
        bool, Parameter(group=OTHER, negative="", help="also streams that have consumers, or were written from elsewhere")
    ] = False,
    json: Annotated[bool, Parameter(group=OTHER, negative="", help="the outcome as JSON; never asks")] = False,
    env_file: Annotated[Path | None, Parameter(group=OTHER, help="NAME=value lines; the environment beats them")] = None,
) -> int:
    """Remove what a bridge leaves behind: slot, streams, entries in buckets. Shows first what that frees, then asks."""
    from actors.commands.cleanup import run_cleanup  # noqa: PLC0415
    from actors.settings.resolve import resolve  # noqa: PLC0415

    flags = {"slot": slot, "pub": pub, "stream": stream, "nats_context": nats_context}
    config = resolve(flags, os.environ, env_file)
    return run_cleanup(config, slot_only=slot_only, yes=yes, force=force, as_json=json)


@app.command
def export(
    kind: Annotated[str, Parameter(help="alerts, grafana, compose, systemd, nats-permissions or sql-role")],
    /,
    *,
    dir: Annotated[Path | None, Parameter(help="write into this folder instead of printing")] = None,
    slot: Annotated[str | None, Parameter(group=SOURCE, help="replication slot [cdc_slot]")] = None,
    pub: Annotated[str | None, Parameter(group=SOURCE, help="publication [cdc_pub]")] = None,
    tables: Annotated[str, Parameter(group=SOURCE, help="what the publication holds [users,orders]")] = "users,orders",
    stream: Annotated[str | None, Parameter(group=NATS, help="CDC stream [CDC]")] = None,
    port: Annotated[str | None, Parameter(group=HTTP, help="HTTP telemetry [9090, env BRIDGE_PORT]")] = None,
    env_file: Annotated[Path | None, Parameter(group=OTHER, help="NAME=value lines; the environment beats them")] = None,
) -> int:
    """Print or write files for operating the bridge, made for this setup: its slot, publication, stream, port and users."""
    from actors.commands.export import export as write  # noqa: PLC0415
    from actors.commands.export import make_setup  # noqa: PLC0415

    flags = {"slot": slot, "pub": pub, "stream": stream, "port": port}
    return write(kind, dir, make_setup(flags, os.environ, env_file, tables))


@app.command
def snapshot(
    table: Annotated[str, Parameter(help="a table of schema public, or a token such as sales/orders")],
    /,
    *,
    wait: Annotated[bool, Parameter(group=OTHER, help="until it is whole [yes]", negative="--no-wait")] = True,
    nats_context: Annotated[
        str | None, Parameter(group=NATS, help="context of the nats command line, by name or file [env NATS_CONTEXT]")
    ] = None,
    json: Annotated[bool, Parameter(group=OTHER, negative="", help="the outcome as JSON")] = False,
    env_file: Annotated[Path | None, Parameter(group=OTHER, help="NAME=value lines; the environment beats them")] = None,
) -> int:
    """Ask the bridge that publishes a table, whatever its stream, for all of it. Exit 0 when that is whole."""
    from actors.commands.snapshot import ask_for_snapshot  # noqa: PLC0415
    from actors.settings.resolve import resolve_client  # noqa: PLC0415

    client = resolve_client({"nats_context": nats_context}, os.environ, env_file)
    return ask_for_snapshot(client.nats, table, wait=wait, as_json=json)


@app.command
def demo(
    *,
    seconds: Annotated[float | None, Parameter(group=OTHER, help="end by itself after so long")] = None,
    rate: Annotated[
        int, Parameter(group=OTHER, help="changed rows a second to begin with [250]", validator=Number(gte=1))
    ] = 250,
    keep: Annotated[Path | None, Parameter(group=OTHER, help="keep data and logs in this folder")] = None,
    json: Annotated[bool, Parameter(group=OTHER, negative="", help="the outcome as JSON")] = False,
) -> int:
    """Servers, bridge, load and a live replica in this terminal: nothing to install or configure. Keys do real harm."""
    from actors.commands.demo import run_demo  # noqa: PLC0415

    return run_demo(seconds=seconds, keep=keep, rate=rate, as_json=json)


@app.command(name="train")
def train_dictionary(
    *,
    table: Annotated[str, Parameter(help="a published table: users, sales/orders")],
    size: Annotated[str, Parameter(help="of the dictionary [16k]")] = "16k",
    dictionaries: Annotated[str | None, Parameter(help="folder in which it is written [dictionaries]")] = None,
    pub: Annotated[str | None, Parameter(help="the table's publication [cdc_pub]")] = None,
    upload: Annotated[bool, Parameter(negative="", help="also put it into KV dictionaries")] = False,
    json: Annotated[bool, Parameter(negative="", help="the report as JSON")] = False,
    nats_context: Annotated[
        str | None, Parameter(help="for --upload: context of the nats command line, by name or file [env NATS_CONTEXT]")
    ] = None,
    env_file: Annotated[Path | None, Parameter(help="NAME=value lines; the environment beats them")] = None,
) -> int:
    """Train a zstd dictionary on rows of a live table, and measure on other rows what it saves."""
    from actors.commands.train import train_table  # noqa: PLC0415
    from actors.settings.resolve import resolve  # noqa: PLC0415
    from actors.telemetry.log import set_up_logging  # noqa: PLC0415

    config = resolve({"dictionaries": dictionaries, "pub": pub, "nats_context": nats_context}, os.environ, env_file)
    set_up_logging(config.log.level, config.log.format, config.secrets)
    return train_table(config, table, size, upload=upload, as_json=json)


app.command(produce)


@app.command
def mirror(
    *,
    to: Annotated[str, Parameter(group=MIRROR, help="the replica: sqlite:///file.db or postgresql://user@host/db")],
    tables: Annotated[str, Parameter(group=MIRROR, help="tables, separated by commas [all that the bridge publishes]")] = "",
    again: Annotated[str, Parameter(group=MIRROR, help="tables to copy anew first, separated by commas")] = "",
    stream: Annotated[str | None, Parameter(group=MIRROR, help="the bridge's stream [CDC]")] = None,
    nats_context: Annotated[
        str | None, Parameter(group=NATS, help="context of the nats command line, by name or file [env NATS_CONTEXT]")
    ] = None,
    port: Annotated[str | None, Parameter(group=HTTP, help="serve /health, /ready and /metrics [off]")] = None,
    bind: Annotated[str | None, Parameter(group=HTTP, help="HTTP address [127.0.0.1]")] = None,
    env_file: Annotated[Path | None, Parameter(group=OTHER, help="NAME=value lines; the environment beats them")] = None,
) -> int:
    """Keep SQLite or PostgreSQL tables equal to the source, until stopped."""
    from actors.commands.mirror import run_mirror  # noqa: PLC0415

    flags = {"stream": stream, "nats_context": nats_context, "port": port, "bind": bind}
    return run_mirror(to, tables, again, flags, env_file)


@app.command
def verify(
    *,
    to: Annotated[str, Parameter(group=MIRROR, help="the replica, as given to mirror, which must be running")],
    tables: Annotated[str, Parameter(group=MIRROR, help="tables, separated by commas [all of the replica]")] = "",
    stream: Annotated[str | None, Parameter(group=MIRROR, help="the bridge's stream [CDC]")] = None,
    nats_context: Annotated[
        str | None, Parameter(group=NATS, help="context of the nats command line, by name or file [env NATS_CONTEXT]")
    ] = None,
    limit: Annotated[int, Parameter(group=MIRROR, help="keys to show of rows that differ [20]", validator=Number(gte=0))] = 20,
    timeout: Annotated[
        int,
        Parameter(group=MIRROR, help="seconds until the mirror must have come to one LSN [120]", validator=Number(gte=1)),
    ] = 120,
    json: Annotated[bool, Parameter(group=MIRROR, negative="", help="the report as JSON")] = False,
    env_file: Annotated[Path | None, Parameter(group=OTHER, help="NAME=value lines; the environment beats them")] = None,
) -> int:
    """Prove that a replica equals its source at one LSN: exit 0, or 1 with what differs."""
    from actors.commands.verify import run_verify  # noqa: PLC0415

    flags = {"stream": stream, "nats_context": nats_context}
    return run_verify(to, tables, flags, env_file, keys_max=limit, timeout_s=float(timeout), as_json=json)


@app.command(name="help")
def show_help(topic: str = "", /) -> int:
    """Explain an error by its code (WB107), list the environment variables (env), or show this help."""
    from actors.commands.help import explain  # noqa: PLC0415

    if not topic:
        app.help_print([])
        return 0
    print(explain(topic))
    return 0


def cli(arguments: list[str] | None = None) -> None:
    """The installed command `walbridge`, and `python -m actors.main`. Exit 0 clean, 1 fault, 2 usage or configuration."""
    sys.exit(main(sys.argv[1:] if arguments is None else arguments))


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code. Everything that is wrong is said on stderr."""
    try:
        result = app(_with_default_folder(arguments), print_error=False, exit_on_error=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except CycloptsError as exc:
        print(f"walbridge: {_one_line(exc)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Fatal as exc:
        # what is wrong with the command line or the environment fits one line; what a server has to say does not
        if isinstance(exc, ConfigError) and exc.code < "WB100" and not exc.said:
            print(f"walbridge: {exc.what}{'; ' + exc.fix if exc.fix else ''}", file=sys.stderr)
        else:
            print(exc.explain(), file=sys.stderr)
        return exc.exit_code
    except KeyboardInterrupt:
        return 1
    except Exception:  # our bug: everything that helps to find it
        traceback.print_exc()
        print(f"walbridge {__version__}: this is a bug; please report it with the lines above", file=sys.stderr)
        return 1


def _one_line(exc: CycloptsError) -> str:
    """What is wrong with the words of the command line: the word first, as in all our messages."""
    command = " ".join(exc.command_chain or ())
    help_ = " ".join(filter(None, ("walbridge", command, "--help")))
    if isinstance(exc, UnusedCliTokensError) and exc.unused_tokens:
        found, kind = exc.unused_tokens[0], "no such command"
        wanted = [name for name in app if not name.startswith("-")]
    elif isinstance(exc, UnknownOptionError):
        found, kind = (exc.token.keyword or exc.token.value).partition("=")[0], "unknown option"
        wanted = [name for argument in exc.argument_collection for name in argument.names]
    elif isinstance(exc, MissingArgumentError) and exc.argument is not None:
        example = EXAMPLES.get(command)
        words = "needs a value" if exc.keyword else "missing"
        return f"{exc.argument.name}: {words}; " + (f"e.g. {example}" if example else f"{help_} says what it is")
    else:
        return " ".join(str(exc).split())
    close = difflib.get_close_matches(found, wanted, n=1)
    return f"{found}: {kind}; " + (f"did you mean {close[0]}?" if close else f"{help_} shows what there is")


def _with_default_folder(arguments: list[str]) -> list[str]:
    """`--embedded` may stand alone: the folder is then the default one."""
    found = list(arguments)
    for i, argument in enumerate(found):
        if argument == "--embedded" and (i + 1 == len(found) or found[i + 1].startswith("-")):
            found[i] = "--embedded="
            break
    return found


if __name__ == "__main__":
    cli()
