"""Whether a server writes the WAL that changes can be decoded from, decided from values alone.

Until PostgreSQL 18 `wal_level` says so, and only a restart changes it. PostgreSQL 19 raises the level by itself while a
logical slot exists, unless `wal_level` is minimal, and shows the result as `effective_wal_level`. A standby writes no WAL of
its own: it can decode what its primary writes, so there the effective level counts.
"""

from __future__ import annotations

from dataclasses import dataclass

RAISES_BY_ITSELF = 190000
"""The first version that raises its level for the first logical slot."""
QUERY = """SELECT current_setting('wal_level'), current_setting('effective_wal_level', true),
    coalesce((SELECT pending_restart FROM pg_catalog.pg_settings WHERE name = 'wal_level'), false)"""
"""The levels of a server, the second NULL before version 19, and whether its configuration has another one."""
NEEDS_CHANGE = (
    f"CASE WHEN current_setting('server_version_num')::int >= {RAISES_BY_ITSELF}"
    " THEN current_setting('wal_level') = 'minimal' ELSE current_setting('wal_level') <> 'logical' END"
)
"""SQL for a script: whether `wal_level` of this primary must be changed, as `WalLevel.suffices` decides."""


@dataclass(frozen=True, slots=True)
class WalLevel:
    """The WAL level of a server, configured and in effect."""

    server_version: int
    configured: str
    effective: str | None = None
    """None before PostgreSQL 19."""
    is_standby: bool = False
    awaits_restart: bool = False
    """The configuration has another level, which a restart brings."""

    @property
    def suffices(self) -> bool:
        """Whether a logical slot can be made here, and its changes decoded."""
        if self.server_version < RAISES_BY_ITSELF:
            return self.configured == "logical"
        if self.is_standby:
            return self.effective == "logical"
        return self.configured != "minimal"

    @property
    def words(self) -> str:
        """The level, with what the version makes of it."""
        if self.server_version < RAISES_BY_ITSELF or self.configured == self.effective == "logical":
            return self.configured
        if self.is_standby:
            return f"{self.configured} here, {self.effective} in effect on the primary"
        if self.effective == "logical":
            return f"{self.configured}, in effect logical: PostgreSQL {self._major} raises it while there is a logical slot"
        if self.suffices:
            return f"{self.configured}, which PostgreSQL {self._major} raises for the first logical slot"
        return self.configured

    @property
    def refusal(self) -> str:
        """What is wrong if the level does not suffice."""
        if self.server_version < RAISES_BY_ITSELF:
            return f"wal_level is {self.configured}; it must be logical"
        if self.is_standby:
            return f"effective_wal_level is {self.effective} on this standby; it must be logical"
        return f"wal_level is {self.configured}; PostgreSQL {self._major} takes replica or logical"

    @property
    def fix(self) -> str:
        """What makes it suffice."""
        if self.awaits_restart:
            return "restart PostgreSQL: its configuration has another wal_level already; SHOW wal_level; must then say logical"
        if self.is_standby and self.server_version >= RAISES_BY_ITSELF:
            return "ALTER SYSTEM SET wal_level = 'logical';   -- on the primary, then restart it"
        return (
            "ALTER SYSTEM SET wal_level = 'logical';   -- then restart PostgreSQL. "
            "RDS: rds.logical_replication = 1; Cloud SQL: cloudsql.logical_decoding = on"
        )

    @property
    def _major(self) -> int:
        return self.server_version // 10000
