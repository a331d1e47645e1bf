"""The log: one line per event on stderr, as logfmt or JSON. The METRICS line goes to stdout, where log collectors parse it."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Iterable
from typing import Any

from actors.positions import format_lsn
from actors.telemetry import figures
from actors.telemetry.telemetry import Telemetry

REPEAT_EVERY_S = 60.0
RENEWED_MAX = 100
"""Of secrets that change while the program runs, so many are masked: older ones have expired."""


class Log:
    """A named logger whose keywords become fields: `log.info("streaming", slot="cdc_slot")`."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"walbridge.{name}")

    def debug(self, text: str, /, **fields: object) -> None:
        self._logger.debug(text, extra={"fields": fields})

    def info(self, text: str, /, **fields: object) -> None:
        self._logger.info(text, extra={"fields": fields})

    def warning(self, text: str, /, **fields: object) -> None:
        self._logger.warning(text, extra={"fields": fields})

    def error(self, text: str, /, **fields: object) -> None:
        self._logger.error(text, extra={"fields": fields})


def get_logger(actor: str) -> Log:
    """The log of one actor."""
    return Log(actor)


class _Formatter(logging.Formatter):
    def __init__(self, secrets: tuple[str, ...], *, as_json: bool) -> None:
        super().__init__()
        self._json = as_json
        self._lasting = frozenset(secrets)
        self._renewed: dict[str, None] = {}
        self._secrets: re.Pattern[str] | None = None
        self._compile()

    def mask(self, secrets: Iterable[str]) -> None:
        """Mask these too: a last defence, no code should put a secret into a message."""
        new = [secret for secret in secrets if secret not in self._lasting and secret not in self._renewed]
        if not new:
            return
        self._renewed.update(dict.fromkeys(new))
        for oldest in list(self._renewed)[:-RENEWED_MAX]:
            del self._renewed[oldest]
        self._compile()

    def _compile(self) -> None:
        shown = {form for s in (*self._lasting, *self._renewed) for form in (s, repr(s)[1:-1])}
        as_written = {form for s in shown for form in (s, json.dumps(s)[1:-1], json.dumps(s, ensure_ascii=False)[1:-1])}
        longest_first = sorted(as_written, key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        fields: dict[str, Any] = {
            "ts": stamp,
            "level": record.levelname.lower(),
            "actor": record.name.removeprefix("walbridge."),
            "msg": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        line = json.dumps(fields, default=str) if self._json else " ".join(f"{k}={_logfmt(v)}" for k, v in fields.items())
        return self._secrets.sub("********", line) if self._secrets else line


def _logfmt(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if text and text.isprintable() and not re.search(r'[\s="\\]', text):
        return text
    # characters that move a terminal's cursor or begin a line are written as escapes
    return json.dumps(text, ensure_ascii=not text.isprintable())


class _Repeats(logging.Filter):
    """Passes the same warning of the same table once per minute, with the number of times it was held back."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        fields = getattr(record, "fields", {})
        key = (record.getMessage(), *(str(fields.get(name, "")) for name in ("reason", "table", "tables")))
        now = time.monotonic()
        since, held_back = self._seen.get(key, (0.0, 0))
        if since and now - since < REPEAT_EVERY_S:
            self._seen[key] = (since, held_back + 1)
            return False
        if len(self._seen) > 1000:
            self._seen.clear()
        self._seen[key] = (now, 0)
        if held_back:
            record.fields = {**fields, "repeated": held_back}
        return True


def set_up_logging(level: str, style: str, secrets: tuple[str, ...]) -> None:
    """Send the bridge's log, and warnings of libraries, to stderr. Call once."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(secrets, as_json=style == "json"))
    handler.addFilter(_Repeats())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("walbridge").setLevel(level)


def mask(secrets: Iterable[str]) -> None:
    """Mask these secrets in the log from now on, beside those that are masked already."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, _Formatter):
            handler.formatter.mask(secrets)


def metrics_line(telemetry: Telemetry) -> str:
    """The line that log collectors parse; its format never changes."""
    t = telemetry
    return (
        f"info(bridge): METRICS uptime={t.uptime_s} wal_messages={t.wal_messages_received} "
        f"cdc_events={t.events_published} lsn={format_lsn(figures.confirmed_lsn(t)).lower()} connected={int(t.connected)} "
        f"reconnects={t.reconnects} nats_reconnects={t.nats_reconnects} lag_bytes={figures.held_bytes(t)} "
        f"slot_active={int(t.slot.active)}"
    )


def print_metrics_line(telemetry: Telemetry) -> None:
    """Write the METRICS line to stdout immediately; a closed stdout is not an error."""
    try:
        print(metrics_line(telemetry), flush=True)
    except OSError:
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115  (the reader has gone; print no more)
