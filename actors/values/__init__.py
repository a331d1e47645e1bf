"""Converts PostgreSQL's text to values and bytes, for events, snapshots and mirrors alike. No I/O."""
