"""Bytes to values and back, no I/O: pgoutput and the replication protocol on one side, NATS and JetStream on the other."""
