"""One connection to NATS, and JetStream's API over it."""
