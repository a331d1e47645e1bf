"""Proves consumers right: histories of what a bridge stores, what a copy must hold then, and the command that tries them."""
