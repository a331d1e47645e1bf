"""`walbridge tail`: the changes of a stream as lines for people, or as JSON for programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from io import TextIOWrapper
from typing import Annotated

import trio
from cyclopts.validators import Number

from actors.errors import ConfigError
from actors.mirror.stream_places import parse_beginning
from actors.process import leaves_of, most_telling
from actors.settings.flags import EnvFile, Flags, option, takes_settings
from actors.settings.replica import names_of
from actors.settings.resolve import resolve_client
from actors.settings.setting import OTHER
from actors.tail.following import Read, Reading, follow
from actors.tail.lines import KeyChoice, LineMaker, json_line
from actors.telemetry.log import set_up_logging


@takes_settings("nats_context", stream="the bridge's stream")
def tail(
    flags: Flags,
    *,
    tables: Annotated[str, option(OTHER, "tables, separated by commas [all]", "TABLES")] = "",
    key: Annotated[
        tuple[str, ...], option(OTHER, "only rows with this value in a column of their key: 7, or id=7; may be repeated", "KEY")
    ] = (),
    from_: Annotated[
        str,
        option(
            OTHER,
            "where to begin: now, first, a sequence, a time (UTC, or 10m: ago) or an LSN [now]",
            "PLACE",
            name="--from",
        ),
    ] = "now",
    count: Annotated[int | None, option(OTHER, "end after this many changes", "N", validator=Number(gte=1))] = None,
    wait: Annotated[bool, option(OTHER, "wait for changes after the stream's end [yes]", negative="--no-wait")] = True,
    json: Annotated[bool, option(OTHER, "one JSON object per change")] = False,
    env_file: EnvFile = None,
) -> int:
    """Show the changes of a stream."""
    try:
        beginning = parse_beginning(from_, datetime.now(UTC))
    except ValueError as exc:
        raise ConfigError("WB002", f"--from: {from_!r} {exc}") from None
    client = resolve_client(flags, os.environ, env_file)
    set_up_logging("ERROR", client.log.format, client.secrets)  # what matters is told beside the changes
    printer = Printer(KeyChoice(key), as_json=json, count_max=count)
    reading = Reading(client.nats, client.stream, names_of(tables), beginning, printer.show, printer.tell, to_end=not wait)
    return run_tail(reading)


class Printer:
    """Prints changes, and counts them. What is not a change is told on stderr."""

    def __init__(self, choice: KeyChoice, *, as_json: bool, count_max: int | None) -> None:
        """`count_max`: changes after which there is enough; None for never."""
        self._choice, self._as_json, self._left = choice, as_json, count_max
        self._lines = LineMaker.for_stdout()
        self._told: set[str] = set()

    def show(self, messages: Sequence[Read]) -> bool:
        """Print the changes of these messages; False when there is enough."""
        lines: list[str] = []
        for read in messages:
            if read.problem:
                self.tell(read.trouble)
            for body, event in read.events:
                if self._left != 0 and self._choice.takes(event):
                    lines.append(
                        json_line(read.message.seq, body)
                        if self._as_json
                        else self._lines.line(read.message.seq, int(read.message.stored_at), event)
                    )
                    self._left = None if self._left is None else self._left - 1
                elif (missed := self._choice.misses(event)) and missed not in self._told:
                    self._told.add(missed)
                    self.tell(missed)
        if lines:
            print("\n".join(lines), flush=True)
        return self._left != 0

    def tell(self, words: str) -> None:
        """Say something that is not a change."""
        print(f"walbridge tail: {words}", file=sys.stderr, flush=True)


def run_tail(reading: Reading) -> int:
    """Print until there is enough, or until Ctrl-C or SIGTERM, which are no errors. Raises ConfigError."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        trio.run(follow, reading)
    except KeyboardInterrupt:
        return 0
    except BaseExceptionGroup as group:
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves_of(group)):
            return 0
        raise most_telling(group) from group
    return 0
