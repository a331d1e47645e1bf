"""Compression dictionaries: training them on rows of a table, and measuring what they save."""
