"""The steps before the pipeline runs: check both sides, decide the starting position."""
