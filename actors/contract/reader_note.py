"""What a reader of the CDC stream says about itself in the metadata of its consumer: its kind, and how far it has got.

A consumer without acknowledgements shows JetStream only what was delivered to it. A note costs no stream or bucket of its own,
needs no further right, and is gone with the consumer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

_KIND, _REPLICA, _APPLIED = "walbridge_reader", "walbridge_replica", "walbridge_applied_seq"
_VERIFIED, _MISMATCHED = "walbridge_verified_at", "walbridge_mismatched_keys"
WORDS_MAX = 200
"""Characters of a word that are kept: anybody who may create consumers may write there."""


@dataclass(frozen=True, slots=True)
class ReaderNote:
    """A reader's note about itself."""

    kind: str = ""
    """`mirror` or `tail`; empty for consumers that say nothing."""
    replica: str = ""
    """A mirror's replica: its kind and name, never its complete URL."""
    applied_seq: int | None = None
    """The stream's sequence up to which everything is in the replica."""
    verified_at: int = 0
    """Unix seconds since when `walbridge verify` is known to have found every table equal; 0 if it never has."""
    mismatched_keys: int = 0
    """Keys that differed when `walbridge verify` ran last."""

    @classmethod
    def of(cls, metadata: Any) -> Self:
        """Read the metadata of a consumer, whoever wrote it."""
        if not isinstance(metadata, Mapping):
            return cls()
        return cls(
            _word(metadata, _KIND), _word(metadata, _REPLICA), _number(metadata, _APPLIED), _number(metadata, _VERIFIED) or 0,
            _number(metadata, _MISMATCHED) or 0,
        )  # fmt: skip

    def as_metadata(self) -> dict[str, str]:
        """The note as a consumer's metadata has it, without what is not known."""
        words: dict[str, object] = {_KIND: self.kind, _REPLICA: self.replica, _APPLIED: self.applied_seq}
        if self.verified_at or self.mismatched_keys:
            words |= {_VERIFIED: self.verified_at, _MISMATCHED: self.mismatched_keys}
        return {name: str(value) for name, value in words.items() if value not in ("", None)}


def _word(metadata: Mapping[Any, Any], name: str) -> str:
    found = metadata.get(name)
    return found[:WORDS_MAX] if isinstance(found, str) else ""


def _number(metadata: Mapping[Any, Any], name: str) -> int | None:
    found = metadata.get(name)
    return int(found) if isinstance(found, str) and re.fullmatch(r"[0-9]{1,18}", found, re.ASCII) else None
