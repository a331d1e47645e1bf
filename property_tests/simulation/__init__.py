"""A seeded simulation of everything: the real bridge and the real mirror on a clock that jumps, between models of servers.

`python -m property_tests.simulation --help` says how to run it; CONTRIBUTING.md says what it is for.
"""
