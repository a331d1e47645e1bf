"""The commands of `walbridge`, one module each: its parameters and its body."""
