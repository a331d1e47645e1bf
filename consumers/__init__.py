"""Consumers in other languages, and the rules that each of them must keep."""
