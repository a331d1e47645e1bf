"""The command line: flags and environment to one Config, logging, exit codes."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Group, Parameter, UnknownOptionError, UnusedCliTokensError

from actors import __version__
from actors.errors import ConfigError, Fatal

if TYPE_CHECKING:
    from actors.config import Config

EPILOGUE = """\
Environment: walbridge help env     An error by its code: walbridge help WB107

Examples:
  python -m actors.main --embedded
  DATABASE_URL=postgresql://bridge@db/app NATS_URL=nats://nats walbridge
"""

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
    accept_gap: Annotated[
        bool, Parameter(group=SOURCE, negative="", help="after changes were lost for good: store the gap event and go on")
    ] = False,
    embedded: Annotated[
        str | None,
        Parameter(group=SOURCE, help="start PostgreSQL and NATS from the 'embedded' extra, data kept in this folder"),
    ] = None,
    stream: Annotated[str | None, Parameter(group=NATS, help="CDC stream; a second bridge gets its own [CDC]")] = None,
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
    from actors.config import resolve  # noqa: PLC0415  (--version and health need none of this)

    flags = {
        "slot": slot, "pub": pub, "accept_gap": accept_gap, "stream": stream, "publish": publish, "pack": pack,
        "json": json, "arrays": arrays, "snapshot_format": snapshot_format, "zstd": zstd, "zstd_events": zstd_events,
        "dictionaries": dictionaries, "port": port, "bind": bind,
    }  # fmt: skip
    if embedded is not None and print_config:
        raise ConfigError("WB002", "--print-config: shows the settings for servers of your own; leave out --embedded")
    if embedded is not None:
        from actors.tools.run_embedded import run_embedded  # noqa: PLC0415

        return run_embedded(embedded, flags, env_file)
    config = resolve(flags, os.environ, env_file)
    if print_config:
        show_config(config.origins)
        return 0
    return start(config)


def start(config: Config) -> int:
    """Run the bridge with its log set up."""
    from actors.bridge import run as run_bridge  # noqa: PLC0415
    from actors.log import set_up_logging  # noqa: PLC0415

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
    from actors.tools.health import check_health  # noqa: PLC0415

    variable = os.environ.get("BRIDGE_PORT")
    return check_health(bind, port or variable or "9090", "--port" if port or not variable else "BRIDGE_PORT")


@app.command
def mirror(
    *,
    to: Annotated[str, Parameter(group=MIRROR, help="the replica: sqlite:///file.db or postgresql://user@host/db")],
    tables: Annotated[str, Parameter(group=MIRROR, help="tables, separated by commas [all that the bridge publishes]")] = "",
    stream: Annotated[str | None, Parameter(group=MIRROR, help="the bridge's stream [CDC]")] = None,
    env_file: Annotated[Path | None, Parameter(group=OTHER, help="NAME=value lines; the environment beats them")] = None,
) -> int:
    """Keep SQLite or PostgreSQL tables equal to the source, until stopped."""
    from actors.tools.mirror import run_mirror  # noqa: PLC0415

    return run_mirror(to, tables, stream, env_file)


@app.command
def verify(
    *,
    to: Annotated[str, Parameter(group=MIRROR, help="the replica, as given to mirror, which must be running")],
    tables: Annotated[str, Parameter(group=MIRROR, help="tables, separated by commas [all of the replica]")] = "",
    stream: Annotated[str | None, Parameter(group=MIRROR, help="the bridge's stream [CDC]")] = None,
    limit: Annotated[int, Parameter(group=MIRROR, help="keys to show of rows that differ [20]")] = 20,
    timeout: Annotated[int, Parameter(group=MIRROR, help="seconds until the mirror must have come to one LSN [120]")] = 120,
    json: Annotated[bool, Parameter(group=MIRROR, negative="", help="the report as JSON")] = False,
    env_file: Annotated[Path | None, Parameter(group=OTHER, help="NAME=value lines; the environment beats them")] = None,
) -> int:
    """Prove that a replica equals its source at one LSN: exit 0, or 1 with what differs."""
    from actors.tools.verify import run_verify  # noqa: PLC0415

    return run_verify(to, tables, stream, env_file, keys_max=limit, timeout_s=float(timeout), as_json=json)


@app.command(name="help")
def show_help(topic: str = "", /) -> int:
    """Explain an error by its code (WB107), list the environment variables (env), or show this help."""
    from actors.tools.topics import explain  # noqa: PLC0415

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
    if isinstance(exc, UnusedCliTokensError) and exc.unused_tokens:
        found, kind = exc.unused_tokens[0], "no such command"
        wanted = ["run", "health", "help", "mirror", "verify"]
    elif isinstance(exc, UnknownOptionError):
        found, kind = (exc.token.keyword or exc.token.value).partition("=")[0], "unknown option"
        wanted = [name for argument in exc.argument_collection for name in argument.names]
    else:
        return " ".join(str(exc).split())
    close = difflib.get_close_matches(found, wanted, n=1)
    return f"{found}: {kind}; " + (f"did you mean {close[0]}?" if close else "walbridge --help shows what there is")


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
