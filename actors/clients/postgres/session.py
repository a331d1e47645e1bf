"""Settings of every session, whatever the server, the database, the role or the environment of this process has set.

They are set after the connection is made: settings in the startup packet lose to libpq's PGTZ and PGDATESTYLE, and a server
refuses one that its version does not know. https://www.postgresql.org/docs/18/runtime-config-client.html
"""

from __future__ import annotations

from collections.abc import Mapping

PINNED = {
    # the text of values depends on these
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_monetary": "C",  # money: $1,234.56 from every server, and a replica's server may lack the source's locale
    "quote_all_identifiers": "off",  # names in reg* types, in defaults and row filters
    "search_path": "pg_catalog",  # the same; and only PostgreSQL's own functions are called
    # the values read from text depend on these
    "array_nulls": "on",
    "xmloption": "content",
    # the meaning of a statement, and how many rows it finds
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    "gin_fuzzy_search_limit": "0",  # of a row filter that an index serves, it would return some rows
    # when a statement or session ends: creating a slot takes as long as the transactions that it waits for
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "exit_on_error": "off",
    # transactions
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    # PostgreSQL 18 reports a missing publication only by a warning
    "client_min_messages": "warning",
}
"""Values by setting, for every supported version."""
SINCE = {"transaction_timeout": (170000, "0")}
"""Settings that older servers do not know: the first version that knows them, and the value."""

PATIENT_SENDER = (
    "SELECT set_config('wal_sender_timeout', '60s', false)"
    " WHERE current_setting('wal_sender_timeout')::interval BETWEEN '1ms' AND '1999ms'"
)
"""For replication connections: a status goes to the sender every second, so a shorter timeout would end it again and again."""


def session_settings(server_version: int, *, client_encoding: str = "UTF8", keep_role: bool = False) -> dict[str, str]:
    """Return the settings with which a session begins.

    `keep_role` keeps the role that `ALTER ROLE ... SET role` has chosen. Otherwise the role that logged in counts: the
    REPLICATION attribute is not inherited.
    """
    settings = {} if keep_role else {"role": "none"}
    settings |= PINNED | {name: value for name, (since, value) in SINCE.items() if server_version >= since}
    return settings | {"client_encoding": client_encoding}


def setting_statement(settings: Mapping[str, str], *, process_id: int | None = None) -> str:
    """Return the statement that sets them, and a row for each; nothing, if another process than `process_id` executes it."""
    values = ", ".join(f"('{name}', '{value}')" for name, value in settings.items())
    where = "" if process_id is None else f" WHERE pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) {process_id}"
    return f"SELECT pg_catalog.set_config(name, value, false) FROM (VALUES {values}) AS s (name, value){where}"
