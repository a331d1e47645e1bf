"""What happens before the pipeline runs: both sides are checked, the starting position is decided."""
