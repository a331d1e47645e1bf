"""Faults on real servers: named ones and random ones, one after another, and a verdict on what came of each.

`python -m tests.faults --minutes 60`. Not collected by pytest: a run takes from minutes to hours; tests/test_faults.py runs a part.
"""
