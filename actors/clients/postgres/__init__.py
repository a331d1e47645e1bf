"""One connection to PostgreSQL, the replication stream, and what the catalog says."""
