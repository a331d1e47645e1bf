"""Where a replica lives: SQLite and PostgreSQL behind one protocol."""
