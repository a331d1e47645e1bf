"""Sample tables and load on them."""
