"""Errors say what happens next.

`Transient`: the supervisor, alone, drops the pipeline's state, waits and starts again from the stream's tail.
`Fatal`: the process ends; the text says what to do. Anything else is a bug and crashes.
Every error a user can meet has a stable code; `docs/operations.md` has a section for each, and a test compares the two.
"""


class WalbridgeError(Exception):
    """An error of the world, not of the program.

    `what` is one line: what was found. `said` is the peer's own words and code (SQLSTATE, NATS err_code), `means` the
    consequence, `fix` a command or sentence that repairs it. No secret is ever in any of them.
    """

    def __init__(self, code: str, what: str, *, said: str = "", means: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.code, self.what, self.said, self.means, self.fix = code, what, said, means, fix

    def __str__(self) -> str:
        """One line, for logs and /status: code, what, and what the peer said."""
        return f"{self.code}: {self.what}" + (f" ({self.said})" if self.said else "")

    def explain(self) -> str:
        """The whole message for a terminal: what, said, means, fix, docs; one aligned line each."""
        lines = [f"error {self.code}: {self.what}"]
        for label, text in (("said", self.said), ("means", self.means), ("fix", self.fix)):
            if text:
                lines.append(f"  {label + ':':<7}" + text.replace("\n", "\n" + " " * 9))
        lines.append(f"  docs:  docs/operations.md#{self.code.lower()}")
        return "\n".join(lines)


class Transient(WalbridgeError):
    """Passes by itself: the pipeline starts again from the stream's tail after `retry_s` seconds, with jitter."""

    retry_s = 2.0


TRANSIENT_CODES = (
    "WB101", "WB102", "WB103", "WB104", "WB108", "WB118", "WB122", "WB151",
    "WB200", "WB201", "WB202", "WB203", "WB204", "WB206", "WB208",
    "WB210", "WB211", "WB212", "WB220", "WB221", "WB222", "WB223",
    "WB311", "WB320",
)  # fmt: skip
"""Codes of every `Transient` that the bridge's modules raise, as a test verifies; readers of its streams have more."""


class SourceUnavailable(Transient):
    """PostgreSQL is gone, not there yet, or another process holds the slot."""

    retry_s = 5.0


class HistoryDiverged(SourceUnavailable):
    """PostgreSQL sends another transaction in the place of the last stored one: the next start decides what is lost."""

    retry_s = 0.1


class SinkUnavailable(Transient):
    """NATS is gone, silent, or answered something else than "stored"."""


class SinkFenced(SinkUnavailable):
    """Another writer added to our stream: its last sequence is not the one that we wrote."""


class Fatal(WalbridgeError):
    """Only a person can repair it: the process ends."""

    exit_code = 1


class ConfigError(Fatal):
    """A flag, a variable or something that an administrator made does not fit: exit 2, nothing was changed."""

    exit_code = 2


class MalformedMessage(Fatal):
    """A peer broke its protocol: the connection cannot be trusted any more."""

    def __init__(self, what: str) -> None:
        super().__init__("WB300", what, means="nothing is confirmed beyond the last stored change",
                         fix="report it with this line; the message is kept in PostgreSQL's WAL")  # fmt: skip
