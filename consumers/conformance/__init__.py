"""Histories that every consumer must get right, as JSON; the README beside this file describes them."""
