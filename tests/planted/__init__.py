"""Consumers with planted faults, which histories and `walbridge certify` must find."""
