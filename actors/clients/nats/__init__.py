"""One connection to NATS, and what is asked of JetStream over it."""
