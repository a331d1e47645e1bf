"""Hostile input: whatever arrives, the result is a right value or a typed error, in bounded memory and time.

Each test is a property that hypothesis tries in the suite, and that `python -m property_tests.fuzz` tries for as long as you
want, guided by coverage.
"""
