"""Faults on real servers: named ones and random ones, one after another, with a verdict on each run.

`python -m tests.faults --minutes 60`. Not collected by pytest: a run takes from minutes to hours; tests/test_faults.py runs a part.
"""
