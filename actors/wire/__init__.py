"""Converts bytes to values and back, without I/O: pgoutput and the replication protocol, NATS and JetStream."""
