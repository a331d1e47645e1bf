"""What the command line, the environment and an env file say, as one immutable value."""
