"""nats-server with JetStream, as far as bridge and mirror use it: its protocol, its streams, and what power cuts leave of them."""
