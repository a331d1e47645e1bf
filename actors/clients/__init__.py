"""Clients, each with one socket, on trio. They turn errors of libraries and peers into Walbridge's, and never retry."""
