"""The log: one line an event, every value quoted so that it stays one, no secret in any spelling."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.positions import Lsn
from actors.telemetry import log as log_module
from actors.telemetry.log import get_logger, metrics_line, set_up_logging
from actors.telemetry.telemetry import Telemetry

SetUp = Callable[..., None]
FIELD = re.compile(r'(?:^| )([a-z_]+)=("(?:[^"\\]|\\.)*"|[^ "]*)')


@pytest.fixture
def log_to_stderr() -> SetUp:
    """Sets logging up as the bridge does."""

    def set_up(style: str = "logfmt", *secrets: str, level: str = "INFO") -> None:
        set_up_logging(level, style, secrets)

    return set_up


def parsed(line: str) -> dict[str, str]:
    """The fields of a logfmt line; every character belongs to one."""
    fields = FIELD.findall(line)
    assert "".join(f" {name}={value}" for name, value in fields)[1:] == line
    return {name: json.loads(value) if value.startswith('"') else value for name, value in fields}


def test_a_line_has_time_level_actor_message_and_fields(log_to_stderr: SetUp, capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr()
    get_logger("publisher").info("on its way", slot="cdc_slot", nothing="", yes=True, text='a "b"\nc=\\d')
    get_logger("publisher").debug("unseen")
    (line,) = capsys.readouterr().err.splitlines()
    fields = parsed(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", fields.pop("ts"))
    assert fields == {"level": "info", "actor": "publisher", "msg": "on its way", "slot": "cdc_slot", "nothing": "",
                      "yes": "true", "text": 'a "b"\nc=\\d'}  # fmt: skip


@given(value=st.text())
def test_any_value_stays_on_its_line_and_reads_back(value: str) -> None:
    set_up_logging("INFO", "logfmt", ())
    formatter = logging.getLogger().handlers[0].formatter
    assert formatter is not None
    record = logging.makeLogRecord({"name": "walbridge.x", "levelname": "INFO", "msg": "m", "fields": {"value": value}})
    line = formatter.format(record)
    assert len(line.splitlines()) == 1
    assert line.isprintable(), "nothing moves the cursor of a terminal"
    assert parsed(line)["value"] == value


def test_json_has_the_same_fields(log_to_stderr: SetUp, capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr("json")
    get_logger("bridge").warning("waiting", reason="a\nb", lsn=Lsn(5), error=OSError("x"))
    (line,) = capsys.readouterr().err.splitlines()
    fields = json.loads(line)
    assert (fields["level"], fields["reason"], fields["lsn"], fields["error"]) == ("warning", "a\nb", 5, "x")


@pytest.mark.parametrize("style", ["logfmt", "json"])
def test_a_secret_is_masked_in_every_spelling(style: str, log_to_stderr: SetUp, capsys: pytest.CaptureFixture[str]) -> None:
    secrets = ("hunter2", 'quo"zq\\one', "schlüssel", "hunter2-longer")
    log_to_stderr(style, *secrets)
    for secret in secrets:
        get_logger("bridge").error(f"failed with {secret}", said=f"server: {secret}!", nested={"k": secret})
    written = capsys.readouterr().err
    assert written.count("********") == 3 * len(secrets)
    for piece in ("hunter2", "longer", "zq", "schl", "ssel"):
        assert piece not in written


def test_the_same_warning_comes_once_a_minute_with_a_count(
    log_to_stderr: SetUp, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now)
    log_to_stderr()
    log = get_logger("bridge")
    for second in range(62):
        now = 1000.0 + second
        log.warning("waiting for NATS", reason="refused", next_try_s=second)
        log.info("heard", of=second)
    log.warning("waiting for NATS", reason="another")
    lines = [parsed(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["next_try_s"] for line in lines if line.get("reason") == "refused"] == ["0", "60"]
    assert [line.get("repeated") for line in lines if line["level"] == "warning"] == [None, "59", None]
    assert sum(line["level"] == "info" for line in lines) == 62, "only warnings are held back"


def test_libraries_speak_in_our_format_and_only_of_trouble(log_to_stderr: SetUp, capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(level="DEBUG")
    logging.getLogger("hypercorn").info("Running on http://127.0.0.1")
    try:
        raise OSError("gone")
    except OSError:
        logging.getLogger("hypercorn").exception("Error in ASGI Framework")
    (line,) = capsys.readouterr().err.splitlines()
    assert parsed(line)["actor"] == "hypercorn"
    assert parsed(line)["trace"].endswith("OSError: gone")


def test_the_metrics_line_is_the_contracts() -> None:
    telemetry = Telemetry(wal_messages_received=2, confirmed_lsn=Lsn(0x183F680), postgres_connected=True, nats_connected=True)
    telemetry.started_at -= 15
    telemetry.slot.active, telemetry.slot.current_lsn, telemetry.slot.restart_lsn = True, Lsn(0x183F680), Lsn(0x183F680 - 51608)
    assert metrics_line(telemetry) == (
        "info(bridge): METRICS uptime=15 wal_messages=2 cdc_events=0 lsn=0/183f680 connected=1 reconnects=0 "
        "nats_reconnects=0 lag_bytes=51608 slot_active=1"
    )
