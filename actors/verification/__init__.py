"""Proves that a replica equals its source at one LSN: reads both sides while the mirror holds still there."""
