"""Connections to PostgreSQL, the replication stream, slots and catalog queries."""
