"""How many messages the server takes in an atomic batch, learnt from its refusals."""

from __future__ import annotations

from actors.errors import BatchTooLarge, Transient

USUAL_MAX = 1_000
"""nats-server's own limit; its configuration may set another."""


class BatchLimit:
    """nats-server names its limit only when a batch exceeds it; so the bridge learns of a lower one by a fault."""

    def __init__(self) -> None:
        self.messages_max = USUAL_MAX

    def note(self, fault: Transient) -> None:
        """Note the fault that ended a run."""
        if isinstance(fault, BatchTooLarge):
            # a refusal that names no lower limit must not come again and again
            lower = fault.messages_max if fault.messages_max < self.messages_max else self.messages_max // 2
            self.messages_max = max(1, lower)
