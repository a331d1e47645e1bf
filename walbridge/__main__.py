"""`python -m walbridge`: the command line."""

from actors.main import cli

if __name__ == "__main__":
    cli()
