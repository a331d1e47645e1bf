"""How fast is it here? `python -m bench` measures the bridge beside `pg_recvlogical` on servers of its own."""
