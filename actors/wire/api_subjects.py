"""Where JetStream answers: its API's subjects, below a prefix that a domain or an import of another account gives them.

A client on a leaf node reaches the JetStream of a domain below `$JS.{domain}.API`, which servers map to `$JS.API`. An account
that imports another account's JetStream chooses the prefix itself. Keys of buckets are then written below the prefix too, as
all clients of NATS do it: a leaf node does not pass their own subjects on. Events are published on their
own subjects, whatever the prefix. Messages of consumers are recognized by their reply subject, which never has the prefix.
https://docs.nats.io/running-a-nats-service/configuration/leafnodes/jetstream_leafnodes
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_PREFIX = "$JS.API"
ACK_PREFIX = b"$JS.ACK."
"""Of the reply subject of each message that a consumer delivers."""


def domain_prefix(domain: str) -> str:
    """Return the prefix of a domain's API."""
    return f"$JS.{domain}.API"


@dataclass(frozen=True, slots=True)
class ApiSubjects:
    """The subjects of one JetStream."""

    prefix: str = DEFAULT_PREFIX
    """Without a dot at its end."""

    def action(self, action: str) -> str:
        """Return where an action is requested: `STREAM.INFO.CDC`."""
        return f"{self.prefix}.{action}"

    def next_message(self, stream: str, consumer: str) -> str:
        """Return where a consumer's messages are requested."""
        return self.action(f"CONSUMER.MSG.NEXT.{stream}.{consumer}")

    def key(self, subject: str) -> str:
        """Return where to publish what a bucket stores on this subject."""
        return subject if self.prefix == DEFAULT_PREFIX else f"{self.prefix}.{subject}"


OWN = ApiSubjects()
"""Of the JetStream that the server offers to the user's own account."""
