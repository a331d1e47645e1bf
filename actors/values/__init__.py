"""PostgreSQL's text to values and to bytes, once for events, snapshots and mirrors. No I/O."""
