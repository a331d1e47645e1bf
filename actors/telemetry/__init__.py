"""What the running bridge knows about itself, and how it reports that: numbers, history, Prometheus metrics, log."""
