"""SQL names: https://www.postgresql.org/docs/18/sql-syntax-lexical.html#SQL-SYNTAX-IDENTIFIERS; SQLite reads them alike."""


def quoted(name: str) -> str:
    """Quote an identifier, so that any characters are safe."""
    return '"' + name.replace('"', '""') + '"'
