"""What Walbridge costs and how fast it is, measured against `pg_recvlogical` in one run: `python -m bench`."""
