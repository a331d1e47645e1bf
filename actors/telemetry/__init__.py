"""What the running bridge knows of itself, and how it is shown: numbers, history, Prometheus metrics, log."""
