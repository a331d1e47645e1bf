"""The command `walbridge`, and `python -m walbridge`."""

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path


def cli() -> None:
    """Run the command line, with our package `actors` even where another of that name comes first.

    Such a package may be on PYTHONPATH or, for `python -m`, in the folder where the command is typed. This process is ours
    alone, so no code in it needs the other one.
    """
    parent = Path(__file__).resolve().parents[1]
    found = find_spec("actors")
    if found is None or found.origin is None or Path(found.origin).resolve().parents[1] != parent:
        sys.path.insert(0, str(parent))
        importlib.invalidate_caches()
        importlib.import_module("actors")  # finds its own modules from here on
        sys.path.remove(str(parent))
    importlib.import_module("actors.main").cli()


if __name__ == "__main__":
    cli()
