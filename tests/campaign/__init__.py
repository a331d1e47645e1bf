"""The random campaign: real servers, faults and acts of people one after another, and a verdict on what came of it.

`python -m tests.campaign --faults 500 --seed 1`. Not collected by pytest: a run takes from minutes to hours.
"""
