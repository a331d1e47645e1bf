"""The command line: which commands there are, what goes wrong with their words, and exit codes."""

from __future__ import annotations

import difflib
import os
import shlex
import signal
import sys
import traceback
from typing import Any

from cyclopts import App, CycloptsError, Group, MissingArgumentError, Parameter, UnknownOptionError, UnusedCliTokensError

from actors import __version__
from actors.commands.as_typed import carried, remember, typed
from actors.commands.run import run
from actors.errors import ConfigError, Fatal
from actors.settings.config import SETTINGS

EPILOGUE = """\
Environment: walbridge help env     An error by its code: walbridge help WB107

Examples:
  walbridge demo
  walbridge init
  walbridge doctor --env-file walbridge.env
  walbridge tail --from first
  walbridge mirror --tables users --to sqlite:///replica.db
  DATABASE_URL=postgresql://bridge@db/app NATS_URL=nats://nats walbridge
"""

COMMANDS = {
    "init:init": "Write an env file and a script that prepares PostgreSQL, for servers of your own, and say what comes next.",
    "doctor:doctor": "Check PostgreSQL, NATS and the path between them before going live, or beside a running bridge, with a"
    " fix for each finding. Exit 0 fine, 1 warnings, 2 cannot work.",
    "status:status": "Show what a running bridge is doing: state, rates, positions, WAL held, snapshots, problems. Exit 0"
    " while it streams.",
    "health:health": "Exit 0 while the bridge is streaming, 1 with the reason when it is not: for HEALTHCHECK and probes.",
    "pause:pause": "Have a running bridge store what it has read and release its slot, until it is resumed: for work on"
    " PostgreSQL or NATS. A restart stays paused.",
    "resume:resume": "End the pause of a bridge.",
    "snapshot:snapshot": "Request a snapshot of a table from the bridge that publishes it, whatever its stream. Exit 0 when the"
    " snapshot is complete.",
    "tail:tail": "Show changes as lines, from now on or from a sequence, a time or an LSN: of all tables, one"
    " table or one row.",
    "replay:replay": "Set a durable consumer back to a sequence, a time or an LSN, so that its program gets changes again."
    " Shows first which messages those are, then asks.",
    "mirror:mirror": "Keep SQLite or PostgreSQL tables equal to the source, until stopped.",
    "verify:verify": "Prove that a replica equals its source at one LSN: exit 0, or 1 with what differs.",
    "certify:certify": "Try a consumer of your own on a hostile history: kills, duplicates, gaps, new shapes. Exit 0 exact, 1"
    " with the smallest history that breaks it.",
    "train:train": "Train a zstd dictionary on rows of a live table, and measure on other rows what it saves.",
    "export:export": "Print or write files for operating the bridge, made for this setup: its slot, publication, stream, port"
    " and users.",
    "cleanup:cleanup": "Remove what a bridge leaves behind: slot, streams, entries in buckets. Shows first what that frees,"
    " then asks.",
    "demo:demo": "Run servers, bridge, load and a live replica in this terminal: nothing to install or configure. Keys do real"
    " harm.",
    "produce:produce": "Write to the sample tables users, orders and test_types: load for trials, demonstrations and tests.",
    "help:help": "Explain an error by its code (WB107), an alert or a command, or list the environment variables (env).",
}
"""Module and function below `actors.commands` -> the words of `--help`, which imports none of them."""

GROUPS = {
    "Start here": ("demo", "init", "doctor", "help"),
    "Run": ("run", "status", "health", "pause", "resume"),
    "Use the stream": ("tail", "mirror", "verify", "snapshot", "replay", "certify"),
    "Operate": ("export", "train", "cleanup"),
}
"""Title of `--help` -> its commands; `produce` is none of an operator's."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        "walbridge run --env-file walbridge.env",
        "DATABASE_URL=postgresql://bridge@db/app NATS_URL=nats://nats walbridge",
        "walbridge run --embedded",
    ),
    "init": (
        "walbridge init",
        "walbridge init --postgres postgresql://db.example.org/app --tables users,orders --nats nats://nats.example.org",
    ),
    "doctor": (
        "walbridge doctor --env-file walbridge.env",
        "walbridge doctor --round-trip --json",
        "walbridge doctor --only nats --format nagios",
    ),
    "status": ("walbridge status --watch", "walbridge status --url http://bridge:9090 --json"),
    "health": ("walbridge health --port 9091",),
    "pause": ("walbridge pause", "walbridge pause --url http://bridge:9090 --env-file walbridge.env"),
    "resume": ("walbridge resume",),
    "snapshot": ("walbridge snapshot users", "walbridge snapshot sales.orders --rounds"),
    "tail": (
        "walbridge tail --tables users,sales.orders",
        "walbridge tail --tables users --key 42 --from 2h",
        "walbridge tail --from first --no-wait --json",
    ),
    "replay": (
        "walbridge replay --consumer shipping --to 2h",
        "walbridge replay --consumer shipping --to 0/16B3748 --yes",
    ),
    "mirror": (
        "walbridge mirror --tables users --to sqlite:///replica.db",
        "walbridge mirror --to postgresql://me@replica/app --env-file walbridge.env",
    ),
    "verify": (
        "walbridge verify --to sqlite:///replica.db",
        "walbridge verify --tables users --to sqlite:///replica.db --json",
    ),
    "certify": (
        "walbridge certify -- ./my-consumer users",
        "walbridge certify --tables users,orders --rounds 500 --seed 7 -- node consumer.js",
    ),
    "train": ("walbridge train --table users",),
    "export": (
        "walbridge export alerts",
        "walbridge export sql-role --tables users,orders",
        "walbridge export compose --dir ops",
    ),
    "cleanup": ("walbridge cleanup", "walbridge cleanup --slot-only --yes"),
    "demo": (
        "walbridge demo",
        "walbridge demo --seconds 60 --rate 1000",
        "walbridge demo --keep demo-data",
        "walbridge demo --browser",
    ),
    "produce bulk": ("walbridge produce bulk 1000",),
    "help": ("walbridge help WB107", "walbridge help WalbridgeLag", "walbridge help tail", "walbridge help env"),
}
"""By command; the first is also shown where required words are missing."""


def _epilogue(command: str) -> str:
    lines = "\n".join(f"  {line}" for line in EXAMPLES[command])
    return f"Examples:\n{lines}\n"


app = App(
    name="walbridge",
    help="walbridge: every change of your PostgreSQL tables, in order, once, in NATS JetStream",
    help_epilogue=EPILOGUE,
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(show_default=False),
    group_commands=Group("Other", sort_key=-1),
)
app.default(run)
_titles = {title: Group(title, sort_key=-10 + place) for place, title in enumerate(GROUPS)}
_groups = {name: _titles[title] for title, names in GROUPS.items() for name in names}
_places = {name: place for place, name in enumerate(_groups)}
app.command(run, name="run", help_epilogue=_epilogue("run"), group=_groups["run"], sort_key=_places["run"])
for _command, _words in COMMANDS.items():
    _name = _command.partition(":")[2]
    _more: dict[str, Any] = {}
    if _name in _groups:  # `produce` is an app of its own, which says all this itself
        _more = {"help_epilogue": _epilogue(_name), "group": _groups[_name], "sort_key": _places[_name]}
    app.command(f"actors.commands.{_command}", name=_name, help=_words, **_more)


def cli(arguments: list[str] | None = None) -> None:
    """The installed command, and `python -m walbridge`. Exit 0 clean, 1 fault, 2 usage or settings, 130 by a signal."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # for commands that do not listen themselves
    sys.exit(main(sys.argv[1:] if arguments is None else arguments))


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code. Everything that is wrong is reported on stderr."""
    remember(arguments)
    try:
        _check_command(arguments)
        result = app(_spelt_out(arguments), print_error=False, exit_on_error=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except CycloptsError as exc:
        print(f"walbridge: {_one_line(exc)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Fatal as exc:
        # what is wrong with the command line or the environment fits one line; what a server has to say does not
        is_one_line = isinstance(exc, ConfigError) and exc.code < "WB100" and not exc.said
        exc.fix = carried(exc.fix)
        if not is_one_line or exc.code == "WB004":
            from actors.commands.env_file_hints import with_hint  # noqa: PLC0415

            exc.fix = with_hint(exc.fix, exc.code, arguments)
        fixes = exc.fix.splitlines()
        print(f"walbridge: {'; '.join((exc.what, *fixes))}" if is_one_line else exc.explain(), file=sys.stderr)
        return exc.exit_code
    except KeyboardInterrupt:
        print("walbridge: stopped by a signal", file=sys.stderr)
        return 130  # as a shell says it: 1 would be a verdict of verify, doctor or health
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
        if command:
            return f"{found}: one word too many; {help_} shows what it takes"
        if found in wanted:
            others = [word for word in typed() if word != found]
            return f"{found}: the command comes first: {shlex.join(['walbridge', found, *others])}"
    elif isinstance(exc, UnknownOptionError):
        found, kind = (exc.token.keyword or exc.token.value).partition("=")[0], "unknown option"
        wanted = [name for argument in exc.argument_collection for name in argument.names]
    elif isinstance(exc, MissingArgumentError) and exc.argument is not None:
        example = EXAMPLES.get(command, ("",))[0]
        if exc.keyword:
            shown = next((one.value for one in SETTINGS.values() if one.flag == exc.argument.name and one.value), "VALUE")
            return f"{exc.argument.name}: needs a value: {exc.argument.name} {shown}; {help_} says what it is"
        return f"{exc.argument.name}: missing; " + (f"e.g. {example}" if example else f"{help_} says what it is")
    else:
        return " ".join(str(exc).split())
    close = difflib.get_close_matches(found, wanted, n=1)
    return f"{found}: {kind}; " + (f"did you mean {close[0]}?" if close else f"{help_} shows what there is")


def _check_command(arguments: list[str]) -> None:
    """Raise ConfigError for a first word that is nearly a command, whose options would be taken for those of `run`; and for a
    topic of `help` that is nearly one.
    """
    first = arguments[0] if arguments else "-"
    topic = arguments[1] if first == "help" and len(arguments) == 2 else "-"
    if topic not in app and (meant := difflib.get_close_matches(topic, list(app), n=1, cutoff=0.75)):
        raise ConfigError("WB006", f"help {topic}: no such topic", fix=f"did you mean {meant[0]}?")
    close = [] if first.startswith("-") or first in app else difflib.get_close_matches(first, list(app), n=1)
    if close:
        raise ConfigError("WB002", f"{first}: no such command; did you mean {close[0]}?")


def _spelt_out(arguments: list[str]) -> list[str]:
    """`--embedded` may stand alone, for the default folder. `help tail` is `tail --help`, and `help` is `--help`."""
    words = arguments[1:2]
    if arguments[:1] == ["help"] and words not in (["help"], ["--help"], ["-h"]) and all(word in app for word in words):
        return [*arguments[1:], "--help"]
    found = list(arguments)
    for i, argument in enumerate(found):
        if argument == "--embedded" and (i + 1 == len(found) or found[i + 1].startswith("-")):
            found[i] = "--embedded="
            break
    return found


if __name__ == "__main__":
    cli()
