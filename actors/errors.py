"""Error types, by what happens next.

`Transient`: the supervisor, and nothing else, drops the pipeline's state, waits and restarts from the stream's tail.
`Fatal`: the process ends; the text says what to do. Any other exception is a bug and crashes.
Every error that a user can meet has a stable code; `docs/operations.md` has a section for each, and a test compares the two.
"""


class WalbridgeError(Exception):
    """An error of the surroundings, not of the program.

    `what` is one line that says what was found. `said` holds the peer's own words and code (SQLSTATE, NATS err_code), `means`
    the consequence, `fix` a command or sentence that fixes the cause. None of them ever contains a secret.
    """

    def __init__(self, code: str, what: str, *, said: str = "", means: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.code, self.what, self.said, self.means, self.fix = code, what, said, means, fix

    def __str__(self) -> str:
        """Return one line for logs and /status: code, what, and what the peer said."""
        return f"{self.code}: {self.what}" + (f" ({self.said})" if self.said else "")

    def explain(self) -> str:
        """Return the complete message for a terminal: what, said, means, fix, where to read more; one aligned line each."""
        lines = [f"error {self.code}: {self.what}"]
        for label, text in (("said", self.said), ("means", self.means), ("fix", self.fix)):
            if text:
                lines.append(f"  {label + ':':<7}" + text.replace("\n", "\n" + " " * 9))
        lines.append(f"  more:  walbridge help {self.code}")
        return "\n".join(lines)


class Transient(WalbridgeError):
    """An error that may pass by itself: the pipeline restarts from the stream's tail after `retry_s` seconds, with jitter."""

    retry_s = 2.0


TRANSIENT_CODES = (
    "WB101", "WB102", "WB103", "WB104", "WB108", "WB118", "WB119", "WB122", "WB124", "WB139", "WB140", "WB141", "WB151",
    "WB200", "WB201", "WB202", "WB203", "WB204", "WB205", "WB206", "WB208",
    "WB210", "WB211", "WB212", "WB220", "WB221", "WB222", "WB223", "WB225", "WB226",
    "WB311", "WB312", "WB320",
)  # fmt: skip
"""Codes of every `Transient` that the bridge's modules raise, as a test verifies; the mirror has more."""


class SourceUnavailable(Transient):
    """PostgreSQL is away or not up yet, or another process holds the slot."""

    retry_s = 5.0


class HistoryDiverged(SourceUnavailable):
    """PostgreSQL sends another transaction in the place of the last stored one: the next start decides what is lost."""

    retry_s = 0.1


class SinkUnavailable(Transient):
    """NATS is away or silent, or did not answer "stored"."""


class SinkFenced(SinkUnavailable):
    """Another writer published to the bridge's stream: the last sequence is not the one that this bridge wrote."""

    stored_seq = -1
    """The stream's last sequence as this bridge knew it; -1 if it did not know."""


class TakenForDuplicate(SinkUnavailable):
    """JetStream dropped a message because it remembers the message's id, though not the message."""


class BatchTooLarge(SinkUnavailable):
    """The server takes only smaller atomic batches than the one that it was sent."""

    messages_max = 1
    """How many messages it takes."""


class Fatal(WalbridgeError):
    """An error that only the user can fix: the process ends."""

    exit_code = 1


class ConfigError(Fatal):
    """A flag, a variable or something that an administrator set up is wrong: exit 2, nothing was changed."""

    exit_code = 2


class MalformedMessage(Fatal):
    """A peer broke its protocol: the connection can no longer be trusted."""

    def __init__(self, what: str) -> None:
        super().__init__("WB300", what, means="nothing is confirmed beyond the last stored change",
                         fix="report this line as a bug; PostgreSQL's WAL keeps the message")  # fmt: skip
