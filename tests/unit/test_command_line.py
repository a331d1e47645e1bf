"""The command line and its settings, as scripts and people meet them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from actors.commands.env_file_hints import with_hint
from actors.embedded.process import free_port
from actors.main import app
from actors.settings.env_file import INIT_WRITES_SQL
from tests.command_line import run_here
from tests.servers import CLEAN, ROOT

USER = {"POSTGRES_BRIDGE_USER": "bridge"}


@pytest.mark.parametrize(
    ("arguments", "env", "words"),
    [
        (["--prot", "1"], {}, ["--prot", "--port"]),
        (["--publish", "fats"], {}, ["--publish", "'fats'", "auto, fast, durable, plain"]),
        (["--port", "abc"], {}, ["--port", "'abc'", "1-65535"]),
        (["--port", "0"], {}, ["--port", "'0'", "1-65535"]),
        (["--pack", "-1"], {}, ["--pack", "-1"]),
        (["--slot", "Bad-Slot"], {}, ["--slot", "'Bad-Slot'", "cdc_slot"]),
        (["--stream", "a.b"], {}, ["--stream", "'a.b'", "CDC2"]),
        (["--stream", "INIT"], {}, ["--stream", "'INIT'", "CDC2"]),
        (["mirror", "--stream", "KV_bridges", "--to", "sqlite:///x"], {}, ["--stream", "'KV_bridges'", "CDC2"]),
        (["--arrays", "x"], {}, ["--arrays", "literal, list"]),
        ([], {"BRIDGE_PORT": "abc"}, ["BRIDGE_PORT", "'abc'", "1-65535"]),
        ([], {"PG_PORT": "x"}, ["PG_PORT", "'x'"]),
        ([], {"NATS_URL": "http://x"}, ["NATS_URL", "nats://"]),
        ([], {"DATABASE_URL": "postgres://[", **USER}, ["DATABASE_URL", "postgresql://"]),
        ([], {"NATS_REPLICAS": "9"}, ["NATS_REPLICAS", "'9'", "1-5"]),
        ([], {"LOG_LEVEL": "loud"}, ["LOG_LEVEL", "'loud'"]),
        ([], {"POSTGRES_BRIDGE_USER": ""}, ["POSTGRES_BRIDGE_USER", "DATABASE_URL"]),
        ([], {"DATABASE_URL": "postgresql://db/app", "POSTGRES_BRIDGE_USER": ""}, ["DATABASE_URL", "POSTGRES_BRIDGE_USER"]),
        ([], {"NATS_TOKEN_FILE": "/nonexistent/token"}, ["NATS_TOKEN_FILE", "/nonexistent/token"]),
        ([], {"NATS_TOKEN_FILE": "/dev/null", "NATS_TOKEN": "abcd"}, ["NATS_TOKEN", "NATS_TOKEN_FILE"]),
        (["--env-file", "/nonexistent/env"], {}, ["--env-file", "/nonexistent/env"]),
        (["nonsense"], {}, ["nonsense"]),
        (["mirror"], {}, ["--to: missing", "walbridge mirror --tables users --to sqlite:///replica.db"]),
        (["verify"], {}, ["--to: missing", "walbridge verify --to sqlite:///replica.db"]),
        (["snapshot"], {}, ["TABLE: missing", "walbridge snapshot users"]),
        (["demo", "--seconds", "-5"], {}, ["--seconds", "-5"]),
        (["--slot"], {}, ["--slot: needs a value: --slot NAME", "walbridge --help"]),
        (["verify", "--to"], {}, ["--to: needs a value: --to", "walbridge verify --help"]),
        (["--env-file", "x.env", "status"], {}, ["status: the command comes first: walbridge status --env-file x.env"]),
        (["help", "WB107", "more"], {}, ["more: one word too many", "walbridge help --help"]),
        (["tail", "users"], {}, ["users: one word too many", "walbridge tail --help"]),
        (["status", "--prot", "1"], {}, ["--prot: unknown option", "did you mean --port?"]),
        (["status", "--nonsense"], {}, ["--nonsense: unknown option", "walbridge status --help"]),
        (["verify", "--to", "x", "--limit", "-1"], {}, ["--limit", "-1"]),
        (["doctor", "--only", "postgrs"], {}, ["--only: 'postgrs'", "did you mean postgres?"]),
        (["certify", "--tables", "userz", "--", "true"], {}, ["--tables: 'userz'", "did you mean users?"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_naming_setting_value_and_fix_and_exit_2(
    arguments: list[str], env: dict[str, str], words: list[str]
) -> None:
    done = run_here(*arguments, env={**USER, **env})
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("walbridge: ")
    for word in words:
        assert word in line


def test_a_bridge_that_does_not_answer_comes_with_the_command_that_starts_it(tmp_path: Path) -> None:
    port, env_file = free_port(), tmp_path / "walbridge.env"
    env_file.write_text(f"BRIDGE_PORT={port}\n")
    for command in ("status", "health", "pause"):
        done = run_here(command, "--env-file", str(env_file))
        assert f"127.0.0.1:{port} (Connection refused); start it: walbridge run --env-file {env_file}\n" in done.stderr
    missing = run_here("status", "--env-file", str(tmp_path / "walbrige.env"))
    assert f"No such file or directory; did you mean {env_file}?" in missing.stderr


def test_the_process_exits_with_the_code_of_the_command() -> None:
    for arguments, code in (["--version"], 0), (["--prot", "1"], 2), (["health", "--port", str(free_port())], 1):
        done = subprocess.run(
            [sys.executable, "-m", "actors.main", *arguments], cwd=ROOT, env=CLEAN, text=True, capture_output=True, check=False
        )
        assert done.returncode == code
        assert bool(done.stdout) == (code == 0)
        assert bool(done.stderr) == (code != 0)


def test_help_and_version_say_what_there_is() -> None:
    shown = run_here("--help")
    assert shown.returncode == 0
    for flag in ("--slot", "--pub", "--port", "--json", "--publish", "--pack", "--stream", "--accept-gap", "--embedded"):
        assert flag in shown.stdout
    assert run_here("-h").stdout == shown.stdout
    assert run_here("--version").stdout.strip().count(".") == 2
    assert "DATABASE_URL" in run_here("help", "env").stdout


def test_help_explains_a_code_and_refuses_an_unknown_one() -> None:
    assert "slot" in run_here("help", "WB107").stdout
    assert run_here("help", "107").stdout == run_here("help", "wb107").stdout == run_here("help", "WB107").stdout
    assert run_here("help", "walbridgelag").stdout.startswith("WalbridgeLag\n")
    assert run_here("help", "tail").stdout == run_here("tail", "--help").stdout
    assert run_here("help", "produce", "bulk").stdout == run_here("produce", "bulk", "--help").stdout
    assert "did you mean WalbridgeLag?" in run_here("help", "WalbridgeLga").stderr
    assert "](" not in run_here("help", "WB226").stdout, "no links to files that an installation does not have"
    unknown = run_here("help", "WB999")
    assert len(unknown.stderr) < 200, "no list of all codes"
    assert unknown.returncode == 2
    assert "WB999" in unknown.stderr


def test_every_help_names_its_values_and_has_examples_of_its_own_that_parse() -> None:
    names = [name for name in app if not name.startswith("-")]
    for name in names:
        shown = run_here(name, "--help", env={"COLUMNS": "200"}).stdout
        assert not re.search(r"--[a-z-]+ (STR|INT|FLOAT|PATH)\b", shown), shown
        examples = re.findall(r"^  (?:[A-Z_]+=\S+ )*walbridge ?(.*)$", shown.partition("Examples:\n")[2], re.MULTILINE)
        assert examples, name
        for example in examples:
            words = shlex.split(example)
            assert words[:1] in ([name], []) or name == "run", example
            app.parse_args(
                ["--embedded=" if word == "--embedded" else word for word in words], print_error=False, exit_on_error=False
            )


def test_print_config_shows_value_and_origin_and_no_secret(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2-from-file\n")
    env_file = tmp_path / "env"
    env_file.write_text("# comment\nexport NATS_TOKEN='hunter2-token'\nLOG_LEVEL=debug\nPG_HOST=ignored\n")
    done = run_here(
        "--port", "9191", "--env-file", str(env_file), "--print-config",
        env={**USER, "POSTGRES_BRIDGE_PASSWORD_FILE": str(secret), "PG_HOST": "db.example",
             "NATS_URL": "nats://u:hunter2-url@a:1,tls://b:2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert lines["--port"].split()[1:] == ["9191", "flag"]
    assert lines["PG_HOST"].split()[1:] == ["db.example", "environment", "PG_HOST"]
    assert lines["LOG_LEVEL"].split()[1:] == ["debug", "env", "file", "LOG_LEVEL"]
    assert str(secret) in lines["POSTGRES_BRIDGE_PASSWORD"]
    assert "nats://u:********@a:1,tls://b:2" in lines["NATS_URL"]
    assert "hunter2" not in done.stdout + done.stderr


def test_nothing_at_hand_ends_with_words_not_with_a_trace(tmp_path: Path) -> None:
    done = subprocess.Popen(
        [sys.executable, "-m", "actors.main", "--port", str(free_port())], cwd=ROOT, text=True, stderr=subprocess.PIPE,
        env=CLEAN | USER | {"PG_PORT": str(free_port())},
    )  # fmt: skip
    assert done.stderr is not None
    assert "page=http://127.0.0.1:" in done.stderr.readline()
    line = done.stderr.readline()
    assert "WB101" in line
    assert "next_try_s" in line
    done.terminate()
    rest = done.communicate()[1]
    assert "Traceback" not in rest
    assert done.returncode == 1


def test_health_tells_ready_from_not_ready() -> None:
    done = run_here("health", "--port", str(free_port()))
    assert done.returncode == 1
    assert "not ready" in done.stderr
    assert run_here("health", "--port", "x").returncode == 2


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["health", "--port", "1"]])
def test_version_and_health_load_neither_libpq_nor_the_http_server(arguments: list[str]) -> None:
    loaded = modules_loaded_by(*arguments)
    assert not {"psycopg", "quart", "trio", "nats", "orjson", "zstandard"} & loaded


def test_help_loads_no_command_but_the_bridge_s() -> None:
    loaded = {name for name in modules_loaded_by("--help") if name.startswith("actors.commands.")}
    assert loaded == {"actors.commands.run", "actors.commands.as_typed"}


def modules_loaded_by(*arguments: str) -> set[str]:
    code = f"import sys; from actors.main import main; main({list(arguments)}); print(); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True).stdout
    return set(shown.splitlines()[-1].split())


def test_an_env_file_that_lies_here_and_was_not_named_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hint = "walbridge.env lies here and was not read: add --env-file walbridge.env"
    dead = f"nats://127.0.0.1:{free_port()}"
    nowhere = {"NATS_URL": dead, "BRIDGE_PORT": str(free_port())}  # a bridge may run here at the usual port
    tried = (["run"], ["status"], ["tail"], ["replay", "--consumer", "x", "--to", "1"])
    assert not any(hint in run_here(*words, env=nowhere).stderr for words in tried)
    (tmp_path / "walbridge.env").write_text("".join(f"{name}={value}\n" for name, value in nowhere.items()))
    for words in tried:
        assert hint in run_here(*words, env=nowhere).stderr, words
        named = run_here(*words, "--env-file", "walbridge.env")
        assert named.returncode
        assert hint not in named.stderr, words
    assert hint not in run_here("run", "--prot", "1").stderr, "what is wrong with a word is not in a file"


def test_a_file_of_variables_names_slot_stream_and_port(tmp_path: Path) -> None:
    file = tmp_path / "a.env"
    file.write_text("BRIDGE_SLOT=s2\nBRIDGE_STREAM=CDC2\nBRIDGE_PACK=100\nBRIDGE_ZSTD=yes\nPOSTGRES_BRIDGE_USER=u\n")
    shown = run_here("--print-config", "--env-file", str(file)).stdout
    for words in ("s2", "CDC2", "100", "env file BRIDGE_ZSTD"):
        assert words in shown, shown


@pytest.mark.parametrize(("words", "meant"), [
    (["tial", "--from", "first"], "tail"), (["statsu", "--watch"], "status"), (["tial"], "tail"), (["help", "snapsot"], "snapshot"),
])  # fmt: skip
def test_a_misspelt_command_is_what_is_wrong_and_not_its_options(words: list[str], meant: str) -> None:
    done = run_here(*words)
    assert (done.returncode, f"did you mean {meant}?" in done.stderr, "--" in done.stderr) == (2, True, False), done.stderr


def test_a_file_is_only_hinted_at_where_it_could_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "walbridge.env").write_text("POSTGRES_BRIDGE_PASWORD=misspelt\n")
    (tmp_path / INIT_WRITES_SQL).write_text("")
    assert "walbridge.env lies here" in with_hint("fix it", "WB101", ["run"])
    assert with_hint("fix it", "WB402", ["run", "--embedded"]) == "fix it", "these servers are the bridge's own"
    named = ["run", "--env-file", "walbridge.env"]
    assert with_hint("fix it", "WB103", named) == "fix it", "the script would find no password there"
    (tmp_path / "walbridge.env").write_text("POSTGRES_BRIDGE_PASSWORD=right\n")
    assert INIT_WRITES_SQL in with_hint("fix it", "WB103", named)
    (tmp_path / "walbridge.env").unlink()
    assert with_hint("fix it", "WB107", named) == "fix it", "a file that is gone by now is no fault beside the fault"
