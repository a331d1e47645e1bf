"""`python -m property_tests.simulation --seeds 10000 [--first N]`; `--seed N` replays one with its trace and shrinks it."""

from __future__ import annotations

import os
import sys

if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets of texts is part of a run
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, "-m", "property_tests.simulation", *sys.argv[1:]])

from property_tests.simulation.command import main

sys.exit(main())
