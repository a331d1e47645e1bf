"""One socket each, on trio. A library's or a peer's error becomes ours here; nobody retries here."""
