"""PostgreSQL 18 as the bridge sees it: WAL, slots, timelines and a catalog, behind the interface of `PgConnection`."""
