"""Settings: what wins, what is refused, and that no spelling of a secret is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from actors.errors import ConfigError
from actors.main import app
from actors.settings.config import Config
from actors.settings.resolve import resolve
from tests.command_line import run_here

USER = {"POSTGRES_BRIDGE_USER": "bridge"}


def origins(config: Config) -> dict[str, tuple[str, str]]:
    return {name: (value, origin) for name, value, origin in config.origins}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", "postgresql://u:hunter2@h/d"),
        ("DATABASE_URL", "postgresql://u:hun,ter2@h/d"),
        ("DATABASE_URL", "postgresql://u:hun%40ter2@h/d"),
        ("DATABASE_URL", "postgresql://h/d?user=u&password=hunter2&sslpassword=hunter2"),
        ("DATABASE_URL", r"host=h user=u password=hun\ ter2"),
        ("DATABASE_URL", r"host=h user=u password = 'hun\'ter2'"),
        ("NATS_URL", "nats://u:hunter2@h:1"),
        ("NATS_URL", "nats://hunter2@h:1,tls://u:hunter2@i:2"),
        ("NATS_URL", "u:hunter2@h:1"),
        ("NATS_URL", "hunter2@h"),
        ("NATS_URL", "nats://u:hun@ter2@h:1"),
        ("NATS_URL", "nats://u:hun%40ter2@h:1"),
    ],
)
def test_an_address_is_shown_without_its_password(variable: str, value: str) -> None:
    config = resolve({}, USER | {variable: value})
    shown = origins(config)[variable][0]
    assert "hun" not in shown
    assert "ter2" not in shown
    assert "********" in shown
    assert "hun" not in repr(config)
    assert any("hun" in secret and secret != value for secret in config.secrets), "the log masks it alone too"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NATS_URL", "nats://u:hun,ter2@h:1"),
        ("NATS_URL", "nats://u:12/hunter2@h:1"),
        ("NATS_URL", "nats://u:hunter2@h:port"),
        ("NATS_URL", "nats://hunter2@h:1,http://x"),
        ("NATS_HOST", "u:hunter2@h"),
        ("DATABASE_URL", "postgresql://u:hunter2@h:1:2/d"),
        ("DATABASE_URL", "host=h password=hunter2 nonsense"),
    ],
)
def test_an_address_that_is_refused_is_not_shown_either(variable: str, value: str) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve({}, USER | {variable: value})
    assert refused.value.what.startswith(f"{variable}: ")
    assert "hun" not in refused.value.explain()
    assert "ter2" not in refused.value.explain()


@pytest.mark.parametrize("value", [",", "nats://h:0", "nats://h:99999", "nats://", "nats://h/path", "nats://a b", "ws://h"])
def test_what_is_no_nats_address_is_named(value: str) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve({}, USER | {"NATS_URL": value})
    assert refused.value.what == f"NATS_URL: {value!r} is not a NATS address; give nats://host:4222 or tls://host:4222"


def test_an_ipv6_host_is_put_in_brackets() -> None:
    assert resolve({}, USER | {"NATS_HOST": "::1"}).nats.urls == ("nats://[::1]:4222",)


def test_an_empty_variable_is_one_that_is_not_set(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("from-file\n")
    empty = dict.fromkeys(("PG_HOST", "BRIDGE_PORT", "DATABASE_URL", "NATS_URL", "LOG_LEVEL", "NATS_TOKEN"), "")
    config = resolve({}, USER | empty | {"NATS_TOKEN_FILE": str(secret)})
    assert (config.http.port, config.log.level, config.nats.token) == (9090, "INFO", "from-file")
    assert conninfo_to_dict(config.postgres.conninfo)["host"] == "127.0.0.1"


def test_a_setting_that_was_beaten_says_by_which() -> None:
    config = resolve({}, {
        "DATABASE_URL": "postgresql://u@h/d", "PG_HOST": "other", "POSTGRES_BRIDGE_USER": "bridge",
        "POSTGRES_BRIDGE_PASSWORD": "hunter2", "NATS_URL": "nats://n", "NATS_HOST": "m",
    })  # fmt: skip
    shown = origins(config)
    assert shown["PG_HOST"] == ("other", "environment PG_HOST (not used: DATABASE_URL is set)")
    assert shown["POSTGRES_BRIDGE_USER"][1].endswith("(not used: DATABASE_URL is set)")
    assert shown["POSTGRES_BRIDGE_PASSWORD"][1] == "environment POSTGRES_BRIDGE_PASSWORD", "the URL has none"
    assert shown["NATS_HOST"][1].endswith("(not used: NATS_URL is set)")
    assert (shown["PG_PORT"][1], shown["NATS_PORT"][1]) == ("default", "default")
    assert conninfo_to_dict(config.postgres.conninfo) == {"user": "u", "host": "h", "dbname": "d", "password": "hunter2"}


def test_the_bridge_never_asks_for_replication_through_the_address() -> None:
    conninfo = resolve({}, {"DATABASE_URL": "postgresql://u@h/d?replication=database&sslmode=verify-full"}).postgres.conninfo
    assert "replication" not in conninfo
    assert "sslmode=verify-full" in conninfo


def test_a_short_password_does_not_mask_half_of_the_log() -> None:
    assert resolve({}, {"DATABASE_URL": "host=h user=u password=a"}).secrets == ("host=h user=u password=a",)


def test_an_env_file_is_read_as_systemd_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("""\
# a comment
; another

POSTGRES_BRIDGE_USER="bridge"
export NATS_TOKEN='a=b # c'
  PG_DB = shop
UNKNOWN=ignored
""")
    config = resolve({}, {"PG_DB": ""}, file)
    assert config.nats.token == "a=b # c"
    assert "user=bridge" in config.postgres.conninfo
    assert "dbname=shop" in config.postgres.conninfo
    for line, words in (
        ("not a setting", ":2 is not NAME=value"),
        ("PG_DB=shop # the shop", ":2 has a # within its value; put a comment on a line of its own"),
        ("PG_DB='shop' # the shop", ":2 has a # within"),
        ("PG_DB='shop", ":2 has a quote that is not closed"),
        ("PG_DB='shop\"", ":2 has a quote that is not closed"),
    ):
        file.write_text(f"POSTGRES_BRIDGE_USER=x\n{line}\n")
        with pytest.raises(ConfigError, match=words):
            resolve({}, {}, file)
    file.write_text("POSTGRES_BRIDGE_PASSWORD=a#b'c\n")
    assert "a#b\\'c" in resolve({}, USER, file).postgres.conninfo


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PG_HOST", "db:5433", "has a port; give that as PG_PORT"),
        ("PG_HOST", "[::1]:5433", "has a port"),
        ("NATS_HOST", "nats:4223", "has a port; give that as NATS_PORT"),
        ("DATABASE_URL", "postgresql://u:hunter@2@h/d", "escape what is special in a password, e.g. %40 for @"),
        ("DATABASE_URL", "postgresql://u:hunter%2@h/d", "%25 for %"),
        ("DATABASE_URL", "postgresql://u:hunter/2@h/d", "escape what is special"),
    ],
)
def test_an_address_that_can_never_be_reached_is_refused_with_the_way_to_write_it(name: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({}, USER | {name: value})
    assert words in caught.value.what
    assert "hunter" not in caught.value.explain()


def test_a_host_may_be_in_brackets() -> None:
    config = resolve({}, USER | {"PG_HOST": "[::1]", "NATS_HOST": "[::1]"})
    assert conninfo_to_dict(config.postgres.conninfo)["host"] == "::1"
    assert config.nats.urls == resolve({}, USER | {"NATS_HOST": "::1"}).nats.urls == ("nats://[::1]:4222",)
    for host in ("/var/run/postgresql", "@abstract", "a,b", "fe80::1%eth0"):
        assert conninfo_to_dict(resolve({}, USER | {"PG_HOST": host}).postgres.conninfo)["host"] == host


def test_names_that_count_nowhere_are_told_once_with_the_one_that_was_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "env"
    file.write_text(
        "POSTGRES_BRIGDE_USER=x\nPGHOST=db\nNATS_SERVERS=a\nTZ=UTC\nPYTHONUNBUFFERED=1\nNATS_TOKEN_FILE=/dev/null\nLOG_LEVEL_FILE=x\n"
    )
    for _ in range(2):
        resolve({}, USER | {"PGUSER": "me", "PGPASSFILE": "x", "PGPORT": "1", "PG_PORT": "2"}, file)
    said = capsys.readouterr().err
    for words in (
        "POSTGRES_BRIGDE_USER is not used; did you mean POSTGRES_BRIDGE_USER?",
        "PGHOST is not used; did you mean PG_HOST?",
        "NATS_SERVERS is not used; walbridge help env",
        "LOG_LEVEL_FILE is not used; walbridge help env",
    ):
        assert said.count(f"warning: --env-file: {file}: {words}") == 1, said
    assert len(said.splitlines()) == 4, "PGUSER is not ignored where POSTGRES_BRIDGE_USER is set, nor are the others ours"
    resolve({}, USER | {"PGHOST": "db"})
    assert "PGHOST is set and not used; set PG_HOST, or DATABASE_URL" in capsys.readouterr().err
    resolve({}, {"DATABASE_URL": "postgresql://u@h/d", "PGDATABASE": "db"})
    assert capsys.readouterr().err == ""


def test_every_command_that_reads_settings_takes_an_env_file() -> None:
    of_produce = (f"produce {name}" for name in ("bulk", "stream", "mixed", "crud", "check"))
    without_settings = {"certify", "demo", "help", "init", "produce"}
    names = {name for name in app if not name.startswith("-")} - without_settings
    for name in (*names, *of_produce):
        assert "--env-file" in run_here(*name.split(), "--help").stdout, name
    assert {"status", "health", "tail"} <= names


def test_a_secret_file_loses_only_its_last_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(b" with spaces \r\n")
    config = resolve({}, USER | {"POSTGRES_BRIDGE_PASSWORD_FILE": str(file)})
    assert conninfo_to_dict(config.postgres.conninfo)["password"] == " with spaces "
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not text"):
        resolve({}, USER | {"POSTGRES_BRIDGE_PASSWORD_FILE": str(file)})


def test_a_flag_beats_the_environment_which_beats_the_file_and_a_url_beats_its_parts(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("BRIDGE_PORT=1\nNATS_HOST=file\nLOG_FORMAT=json\n")
    environ = {"DATABASE_URL": "postgresql://u:pw@h:5/d", "PG_HOST": "other", "BRIDGE_PORT": "2", "NATS_URL": "nats://n:3"}
    config = resolve({"port": "3"}, environ, file)
    assert (config.http.port, resolve({}, environ, file).http.port, resolve({}, USER, file).http.port) == (3, 2, 1)
    assert config.log.format == "json"
    assert "host=h" in config.postgres.conninfo
    assert (config.nats.urls, resolve({}, USER, file).nats.urls) == (("nats://n:3",), ("nats://file:4222",))
    assert "pw" not in repr(config)
    beside = resolve({}, {"DATABASE_URL": "postgresql://h/d", "POSTGRES_BRIDGE_USER": "u2", "POSTGRES_BRIDGE_PASSWORD": "x"})
    assert {"user=u2", "password=x", "host=h"} <= set(beside.postgres.conninfo.split())


def test_secrets_of_every_kind_come_from_files_too(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("s3cret!\n")
    names = ("POSTGRES_BRIDGE_PASSWORD", "NATS_BRIDGE_PASSWORD", "NATS_TOKEN", "NATS_NKEY_SEED", "BRIDGE_HTTP_TOKEN")
    config = resolve({}, USER | {f"{name}_FILE": str(file) for name in names})
    assert config.nats.password == config.nats.token == config.nats.nkey_seed == config.http.token == "s3cret!"
    assert "s3cret!" in config.secrets
    assert "s3cret!" not in repr(config)
    with pytest.raises(ConfigError):
        resolve({}, USER | {"NATS_TOKEN_FILE": str(tmp_path)})


def test_a_standby_takes_from_the_primary_what_its_url_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2")
    environ = {"DATABASE_URL": "postgresql://u@a/app", "POSTGRES_BRIDGE_PASSWORD_FILE": str(tmp_path / "password")}
    assert resolve({}, environ).standby is None
    config = resolve({}, {**environ, "SNAPSHOT_DATABASE_URL": "postgresql://b:5433?sslmode=require"})
    assert config.standby is not None
    said = {"host": "b", "port": "5433", "sslmode": "require", "user": "u", "password": "hunter2", "dbname": "app"}
    assert conninfo_to_dict(config.standby.conninfo) == said
    (tmp_path / "password").write_text("hunter3")
    assert conninfo_to_dict(config.standby.latest().conninfo)["password"] == "hunter3"
    shown = {name: value for name, value, _ in config.origins}
    assert "hunter" not in shown["SNAPSHOT_DATABASE_URL"]
    own = resolve({}, {**environ, "SNAPSHOT_DATABASE_URL": "postgresql://r:own@b"})
    assert own.standby is not None
    assert conninfo_to_dict(own.standby.conninfo) == {"host": "b", "user": "r", "password": "own", "dbname": "app"}
    with pytest.raises(ConfigError, match="SNAPSHOT_DATABASE_URL: names another database"):
        resolve({}, {**environ, "SNAPSHOT_DATABASE_URL": "postgresql://b/other"})
