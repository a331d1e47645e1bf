"""Contexts of the nats command line: read when asked for, beaten by the environment, never guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.errors import ConfigError
from actors.settings.resolve import resolve
from tests.conftest import MakeBridge, MakeNats
from tests.servers import Database, wait_for_events

SEED = "SUAGMJH5XLGZKQQWAWKRZJIGMOU4HPFUYLXJMXOO5NLFEO2OOQJ5LPRDPM"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".config/nats/context").mkdir(parents=True)
    return tmp_path


def write(home: Path, name: str, **content: Any) -> None:
    (home / f".config/nats/context/{name}.json").write_text(json.dumps({"description": "", "nsc": "", **content}))


def environment(home: Path, **more: str) -> dict[str, str]:
    return {"HOME": str(home), "POSTGRES_BRIDGE_USER": "x", **more}


def test_what_a_context_says_is_used_and_its_origin_shown(home: Path) -> None:
    write(home, "prod", url="nats://n1:4222,tls://n2:4223", user="bridge", password="hunter2", ca="~/ca.pem", tls_first=True,
          cert="$CERTS/c.pem", key="${CERTS}/k.pem")  # fmt: skip
    config = resolve({"nats_context": "prod"}, environment(home, CERTS="/etc/c"))
    nats = config.nats
    assert nats.urls == ("nats://n1:4222", "tls://n2:4223")
    assert (nats.user, nats.password, nats.tls_first) == ("bridge", "hunter2", True)
    assert (nats.ca, nats.cert, nats.key) == (f"{home}/ca.pem", "/etc/c/c.pem", "/etc/c/k.pem")
    shown = {name: (value, origin) for name, value, origin in config.origins}
    assert shown["NATS_BRIDGE_USER"] == ("bridge", "context prod")
    assert shown["NATS_BRIDGE_PASSWORD"] == ("********", "context prod")
    assert "hunter2" in config.secrets
    assert resolve({}, environment(home, NATS_CONTEXT="prod")).nats == resolve({"nats_context": "prod"}, environment(home)).nats


def test_one_that_is_only_selected_is_never_used(home: Path) -> None:
    write(home, "prod", url="nats://prod:4222")
    (home / ".config/nats/context.txt").write_text("prod")
    assert resolve({}, environment(home)).nats.urls == ("nats://127.0.0.1:4222",)


def test_the_environment_beats_where_or_who_as_a_whole(home: Path) -> None:
    write(home, "prod", url="nats://prod:4222", user="bridge", password="hunter2", user_jwt="eyJ0", user_seed=SEED)
    flags = {"nats_context": "prod"}
    where = resolve(flags, environment(home, NATS_HOST="other")).nats
    assert (where.urls, where.user) == (("nats://other:4222",), "bridge")
    who = resolve(flags, environment(home, NATS_TOKEN="s3cret-token")).nats
    assert (who.urls, who.token) == (("nats://prod:4222",), "s3cret-token")
    assert (who.user, who.password, who.nkey_seed, who.user_jwt) == ("", "", "", ""), "not one's name with another's password"


def test_nkeys_and_jwts(home: Path) -> None:
    (home / "user.nk").write_text(f"-----BEGIN USER NKEY SEED-----\n{SEED}\n------END USER NKEY SEED------\n")
    write(home, "nkey", url="nats://n:1", nkey="~/user.nk")
    write(home, "jwt", url="nats://n:1", user_jwt="eyJ0eXAiOiJKV1Q", user_seed=SEED)
    write(home, "creds", url="nats://n:1", creds="~/a.creds")
    nkey = resolve({"nats_context": "nkey"}, environment(home))
    assert nkey.nats.nkey_seed == SEED
    assert SEED in nkey.secrets
    jwt = resolve({"nats_context": "jwt"}, environment(home))
    assert (jwt.nats.user_jwt, jwt.nats.nkey_seed) == ("eyJ0eXAiOiJKV1Q", SEED)
    assert "eyJ0eXAiOiJKV1Q" not in repr(jwt)
    assert resolve({"nats_context": "creds"}, environment(home)).nats.creds == home / "a.creds"


def test_a_domain_and_a_prefix_belong_to_the_address(home: Path) -> None:
    write(home, "leaf", url="nats://leaf:1", jetstream_domain="hub")
    flags = {"nats_context": "leaf"}
    assert resolve(flags, environment(home)).nats.api.prefix == "$JS.hub.API"
    assert resolve(flags, environment(home, NATS_JS_PREFIX="other.API")).nats.api.prefix == "other.API"
    assert resolve(flags, environment(home, NATS_URL="nats://elsewhere:1")).nats.api.prefix == "$JS.API"


def test_a_context_is_read_again_at_each_connect(home: Path) -> None:
    write(home, "prod", url="nats://n:1", user="bridge", password="first-password")
    config = resolve({"nats_context": "prod"}, environment(home)).nats
    write(home, "prod", url="nats://n:1", user="bridge", password="second-password")
    assert config.latest().password == "second-password"
    (home / ".config/nats/context/prod.json").unlink()
    assert config.latest().password == "first-password", "it may be in the middle of being replaced"


def test_a_file_and_the_folder_of_xdg(home: Path) -> None:
    write(home, "prod", url="nats://byfile:1")
    path = home / ".config/nats/context/prod.json"
    assert resolve({"nats_context": str(path)}, environment(home)).nats.urls == ("nats://byfile:1",)
    moved = environment(Path("/nonexistent"), XDG_CONFIG_HOME=str(home / ".config"))
    assert resolve({"nats_context": "prod"}, moved).nats.urls == ("nats://byfile:1",)


@pytest.mark.parametrize("name", ["../prod", "a/b", "..", "a\\b", "x" * 300])
def test_a_name_that_is_a_path_is_refused(name: str, home: Path) -> None:
    with pytest.raises(ConfigError, match=r"--nats-context.* is not a context's name"):
        resolve({"nats_context": name}, environment(home))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"socks_proxy": "socks5://x"}, "sets socks_proxy"),
        ({"nsc": "nsc://op/acc/user"}, "sets nsc"),
        ({"jetstream_domain": "hub", "jetstream_api_prefix": "hub.API"}, "are both set"),
        ({"inbox_prefix": "_I"}, "sets inbox_prefix"),
        ({"nkey": "/nonexistent"}, "without a seed"),
        ({"url": "http://x"}, "not a NATS address"),
    ],
)
def test_what_the_bridge_cannot_do_is_refused_by_name(content: dict[str, str], words: str, home: Path) -> None:
    write(home, "prod", **content)
    with pytest.raises(ConfigError, match=words):
        resolve({"nats_context": "prod"}, environment(home))


def test_a_context_that_cannot_be_read_is_named(home: Path) -> None:
    (home / ".config/nats/context/bad.json").write_text("[]")
    (home / ".config/nats/context/worse.json").write_text("{")
    for name in ("bad", "worse", "missing"):
        with pytest.raises(ConfigError, match=f"{name}.json") as refused:
            resolve({"nats_context": name}, environment(home))
        assert refused.value.code == "WB003"


def test_a_bridge_runs_by_a_context(home: Path, database: Database, make_nats: MakeNats, make_bridge: MakeBridge) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    nats = make_nats(users={"ada": "secret-of-ada"})
    write(home, "local", url=nats.url, user="ada", password="secret-of-ada")
    nothing = dict.fromkeys(("NATS_URL", "NATS_BRIDGE_USER", "NATS_BRIDGE_PASSWORD"), "")
    make_bridge(database, nats, "--nats-context", "local", env={**nothing, "HOME": str(home), "XDG_CONFIG_HOME": ""})
    database.execute("INSERT INTO t VALUES (1)")
    assert wait_for_events(nats.url, 1, user="ada", password="secret-of-ada")[0].body["data"] == {"id": 1}
