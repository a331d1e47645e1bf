"""Which tests need servers, and what `pytest -m "not servers"` does without them.

A test that requests a fixture which starts a server is marked `servers` by that. A module that starts servers in other ways
declares `pytestmark = pytest.mark.servers`; if it forgets, its tests fail, since no other test may start one.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from tests.guard.sitecustomize import VARIABLE

GUARD = Path(__file__).parent / "tests" / "guard"
SERVER_FIXTURES = frozenset(
    "pg18 pg15 database database15 release_server release_database make_postgres nats215 make_nats nats".split()
    + "make_bridge make_mirror browser".split()
)

settings.register_profile("complete", deadline=None)  # an example's time is the machine's
settings.register_profile("fast", max_examples=10, deadline=None)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "servers: starts PostgreSQL, nats-server or a browser; by its fixtures, or declared")
    config.addinivalue_line("markers", "slow: takes more than ten seconds on a quiet machine")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as under a shell's `&`: programs that tests start would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.load_profile("fast" if "not servers" in config.option.markexpr else "complete")  # complete: every example


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function):
            parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
            named = {name for name in parameters if isinstance(name, str)}  # for request.getfixturevalue
            if SERVER_FIXTURES & {*item.fixturenames, *named}:
                item.add_marker("servers")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with _same_logging():
        if item.get_closest_marker("servers") is not None:
            return (yield)
        return (yield from _without_servers(item))


@contextmanager
def _same_logging() -> Iterator[None]:
    """Loggers are the process's: what a test does to them must not hide the records that a later test waits for."""
    logging.getLogger("walbridge")  # until somebody asks for it, it is only a place in the tree
    loggers = [logging.root, *(one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger))]
    before = [(one, one.level, one.propagate, one.disabled, one.handlers[:]) for one in loggers]
    try:
        yield
    finally:
        for one, level, propagate, disabled, handlers in before:
            one.propagate, one.disabled, one.handlers[:] = propagate, disabled, handlers
            one.setLevel(level)


def _without_servers(item: pytest.Item) -> Generator[None, object, object]:
    before = os.environ.get("PYTHONPATH")
    os.environ[VARIABLE] = item.nodeid
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(GUARD), before]))
    try:
        return (yield)
    finally:
        del os.environ[VARIABLE]
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
