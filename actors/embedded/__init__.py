"""PostgreSQL and nats-server started from wheels: a library for the demo, the tests and the benchmark."""
