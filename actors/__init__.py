"""Walbridge: every change of your PostgreSQL tables, in order, once, in NATS JetStream."""

__version__ = "0.1.0"
