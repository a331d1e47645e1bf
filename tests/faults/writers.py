"""Applications: sessions that commit, roll back and use savepoints, whatever happens to their server and their tables."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import psycopg

from tests.faults.tables import change


class Writers:
    """Writes from `go_on` to `pause`, in threads that end with the process."""

    def __init__(self, dsn: Callable[[], str], seed: str, *, count: int = 3) -> None:
        """`dsn` is asked for at each connection; `seed` decides each session's transactions."""
        self._dsn, self._goes = dsn, threading.Event()
        self.committed = 0
        self.refused: dict[str, int] = {}
        """How often each SQLSTATE ended a transaction."""
        self._idle = [threading.Event() for _ in range(count)]
        for number, idle in enumerate(self._idle):
            threading.Thread(target=self._run, args=(random.Random(f"{seed} {number}"), idle), daemon=True).start()

    def go_on(self) -> None:
        """Let them write."""
        self._goes.set()

    def pause(self) -> None:
        """Return when no session is in a transaction."""
        self._goes.clear()
        for idle in self._idle:
            idle.wait(60)

    def _run(self, dice: random.Random, idle: threading.Event) -> None:
        while True:
            try:
                with psycopg.connect(self._dsn(), client_encoding="UTF8", connect_timeout=5) as session:
                    session.execute("SET lock_timeout = '1s'")
                    session.commit()
                    while True:
                        if not self._goes.is_set():
                            idle.set()
                            self._goes.wait()
                            idle.clear()
                        self._transaction(session, dice)
                        time.sleep(dice.choice((0.005, 0.01, 0.05)))
            except (psycopg.OperationalError, psycopg.InterfaceError):  # the server was killed
                time.sleep(0.1)

    def _transaction(self, session: psycopg.Connection[tuple[object, ...]], dice: random.Random) -> None:
        saved = False
        try:
            for _ in range(dice.choice((1, 1, 1, 2, 5, 15))):
                session.execute(change(dice).encode())
                if dice.random() < 0.1:
                    session.execute("ROLLBACK TO SAVEPOINT s" if saved and dice.random() < 0.7 else "SAVEPOINT s")
                    saved = True
            if dice.random() < 0.03:
                time.sleep(dice.uniform(0, 0.8))  # open while others commit, and while something is killed
            if dice.random() < 0.1:
                session.rollback()
            else:
                session.commit()
                self.committed += 1
        except psycopg.Error as exc:
            if session.closed or session.broken:
                raise psycopg.OperationalError(str(exc)) from exc
            session.rollback()
            self.refused[exc.sqlstate or "?"] = self.refused.get(exc.sqlstate or "?", 0) + 1
