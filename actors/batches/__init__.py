"""Batches of messages: gathered, cut at the ends of transactions, joined. No I/O, no trio."""
