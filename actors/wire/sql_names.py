"""Names in SQL: https://www.postgresql.org/docs/18/sql-syntax-lexical.html#SQL-SYNTAX-IDENTIFIERS; SQLite reads them alike."""


def quoted(name: str) -> str:
    """An identifier as it is, whatever its letters."""
    return '"' + name.replace('"', '""') + '"'
