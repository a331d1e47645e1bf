"""The databases of replicas: SQLite and PostgreSQL behind one protocol."""
