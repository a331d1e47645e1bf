"""The settings' fields: every place that a user reads says what they say, and every reader refuses in words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cyclopts import Parameter

from actors.commands.run import run
from actors.main import app
from actors.settings.config import OPTIONS, SETTINGS, Config, NatsConfig, PublishConfig, SourceConfig
from actors.settings.describe import environment, readme_table
from actors.settings.flags import Flags, takes_settings
from actors.settings.resolve import resolve
from actors.settings.setting import choice, matching, number, switch
from tests.servers import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
REGENERATE = 'python -c "from actors.settings.describe import readme_table; print(*readme_table(), sep=chr(10))"'


def test_the_readmes_table_is_made_of_the_settings() -> None:
    start = README.index("| setting | variable |")
    table = README[start : README.index("\n\n", start)]
    assert table.splitlines() == list(readme_table()), f"put the output of {REGENERATE} into the README"


def test_every_setting_with_a_flag_is_a_parameter_of_run_with_the_settings_words() -> None:
    shown = {name: argument.parameter.help for argument in app["run"].assemble_argument_collection()
             for name in argument.names}  # fmt: skip
    for setting in (*SETTINGS.values(), *OPTIONS):
        if setting.flag:
            assert shown[setting.flag] == setting.help()
    assert set(shown) == {setting.flag for setting in (*SETTINGS.values(), *OPTIONS) if setting.flag}


def test_help_env_has_every_variable_and_no_other() -> None:
    named = [line.split()[0] for line in list(environment())[3:]]
    assert named == [setting.variable for setting in SETTINGS.values() if setting.variable]


def test_print_config_shows_every_setting_in_order() -> None:
    config = resolve({}, {"POSTGRES_BRIDGE_USER": "x"})
    assert [name for name, _, _ in config.origins] == [setting.label for setting in SETTINGS.values()]


def test_names_are_unique_and_every_default_is_what_its_reader_makes_of_it() -> None:
    labels = [setting.label for setting in SETTINGS.values()]
    assert len(labels) == len(set(labels))
    defaults = resolve({}, {"POSTGRES_BRIDGE_USER": "x"})
    assert (defaults.source, defaults.publish) == (SourceConfig(), PublishConfig())
    assert defaults.nats == NatsConfig(("nats://127.0.0.1:4222",))


def test_a_secret_is_never_part_of_a_repr() -> None:
    environ = {"DATABASE_URL": "postgresql://u@h/d", "NATS_TOKEN": "hunter2", "BRIDGE_HEARTBEAT_URL": "https://hunter2/"}
    config = resolve({}, environ)
    assert isinstance(config, Config)
    assert "hunter2" not in repr(config)
    assert {"hunter2", "https://hunter2/"} <= set(config.secrets)


@pytest.mark.parametrize(
    ("read", "text", "words"),
    [
        (switch, "maybe", "is neither yes nor no"),
        (number(1, 9, "a digit", "3"), "10", "is not a digit; give 1-9, e.g. 3"),
        (number(1, 9, "a digit", "3"), "x", "is not a digit; give 1-9, e.g. 3"),
        (choice("a", "b"), "c", "is not one of a, b"),
        (choice("fast", "plain"), "fats", "is not one of fast, plain; did you mean fast?"),
        (matching("[a-z]+", "is not a word"), "1", "is not a word"),
    ],
)
def test_a_reader_says_what_it_reads(read: type, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        read(text)


def test_readers_give_values() -> None:
    assert [switch(text) for text in ("yes", "TRUE", "1", "no", "False", "0")] == [True] * 3 + [False] * 3
    assert (number(1, 9, "a digit", "3")("3"), choice("a", "b")("b")) == (3, "b")


def test_a_command_gets_the_flags_that_it_asks_for_and_its_own_parameters() -> None:
    seen: list[object] = []

    @takes_settings("json", slot="of the bridge")
    def command(flags: Flags, name: str, /, *, folder: Path | None = None) -> int:
        seen.append((dict(flags), name, folder))
        return 0

    assert command("x", slot="s", json=True) == 0
    assert command("y", folder=Path("f")) == 0
    assert seen == [({"json": True, "slot": "s"}, "x", None), ({"json": None, "slot": None}, "y", Path("f"))]
    words = command.__annotations__["slot"].__metadata__[0]
    assert isinstance(words, Parameter)
    assert words.help == "of the bridge [cdc_slot]"
    assert run.__doc__ == "Stream changes until stopped. The default when no command is given."
