"""What happens to the servers, and what people do. Each act has its own dice, so that removing one changes no other."""

from __future__ import annotations

from collections.abc import Mapping

from property_tests.simulation.acts.act import Act
from property_tests.simulation.acts.machines import MACHINES
from property_tests.simulation.acts.networks import NETWORKS
from property_tests.simulation.acts.people import PEOPLE

ACTS: Mapping[str, Act] = {act.name: act for act in (*NETWORKS, *MACHINES, *PEOPLE)}
WEIGHTS: Mapping[str, int] = {act.name: act.weight for act in ACTS.values()}
