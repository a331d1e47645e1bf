"""Whatever is written into flags, variables, an env file or a context, the result is settings or a readable ConfigError."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from actors.errors import WalbridgeError
from actors.settings.config import SETTINGS
from actors.settings.env_file import read_env_file
from actors.settings.resolve import resolve
from property_tests.fuzz.hostile import broken_bytes

WRITTEN = [
    b"1", b"0", b"-1", b"yes", b"1e9", b"99999999999999999999", b"postgresql://u:p%40@[::1]:5432/d?sslmode=require",
    b"postgresql:///d?host=/tmp&options=-c%20x", b"host=h port=5432 dbname='d b'", b"nats://u:p@h:4222,tls://h2", b"ws://h",
    b"CDC", b"a.b c*>", b"/no/such/file", b"json", b"https://h/ping", b"h1:1,h2:2", b"",
]  # fmt: skip
values = broken_bytes(WRITTEN).map(lambda data: data.decode("utf-8", "replace").replace("\0", ""))
VARIABLES = sorted(s.variable for s in SETTINGS.values() if s.variable)
FILES = sorted(f"{s.variable}_FILE" for s in SETTINGS.values() if s.variable and s.secret)
FLAGS = sorted(name for name, s in SETTINGS.items() if s.flag)


@given(st.dictionaries(st.sampled_from(FLAGS), values | st.booleans() | st.integers(), max_size=3),
       st.dictionaries(st.sampled_from(VARIABLES) | st.sampled_from(FILES), values, max_size=4))  # fmt: skip
def test_any_settings_are_read_or_refused_in_words(flags: dict[str, object], environ: dict[str, str]) -> None:
    try:
        resolve(flags, environ)
    except WalbridgeError as exc:
        exc.explain()


@cache
def folder() -> Path:
    path = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, path)
    return path


ENV_FILE = b'# comment\nexport PG_HOST=h\nNATS_URL=\'nats://h\'\nPOSTGRES_BRIDGE_PASSWORD="a\\"b"\n\nBAD LINE\nX=$Y\n'


@given(broken_bytes([ENV_FILE]))
def test_any_env_file_is_read_or_refused_in_words(data: bytes) -> None:
    path = folder() / ".env"
    path.write_bytes(data)
    try:
        read_env_file(path)
    except WalbridgeError as exc:
        exc.explain()


@given(broken_bytes([b'{"url": "nats://h:4222", "user": "u", "password": "p", "creds": "/x", "nkey": "y"}']))
def test_any_context_is_read_or_refused_in_words(data: bytes) -> None:
    contexts = folder() / "nats" / "context"
    contexts.mkdir(parents=True, exist_ok=True)
    (contexts / "x.json").write_bytes(data)
    try:
        resolve({}, {"NATS_CONTEXT": "x", "POSTGRES_BRIDGE_USER": "u", "XDG_CONFIG_HOME": str(folder())})
    except WalbridgeError as exc:
        exc.explain()
