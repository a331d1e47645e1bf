"""What the state of streams, and one stream beside another, means for a bridge and its readers. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.startup.stream_rules import Finding
from actors.telemetry.quantities import span
from actors.telemetry.telemetry import Problem

USUAL_REPLICAS = 3
_DAY_NS = 86_400 * 10**9


def examine_copies(info: Mapping[str, Any], servers: int) -> Finding | None:
    """Return what is wrong with a stream's copies; `servers` is how many the cluster has, 1 without a cluster.

    `info` is a reply of STREAM.INFO.
    """
    name, copies = info["config"]["name"], int(info["config"].get("num_replicas") or 1)
    cluster = info.get("cluster") or {}
    if servers > 1 and not cluster.get("leader"):
        return Finding(
            True, "WB245", f"stream {name} has no leader", "nothing can be stored in it until most of its servers are back",
            "nats server report jetstream   # then start what is down",
        )  # fmt: skip
    late = [str(peer.get("name")) for peer in cluster.get("replicas") or () if peer.get("offline") or not peer.get("current")]
    if late:
        return Finding(
            False, "WB245", f"stream {name}: {', '.join(late)} {'is' if len(late) == 1 else 'are'} offline or behind",
            "one more server that fails may stop the stream", f"nats stream info {name}   # which, and since when",
        )  # fmt: skip
    if copies < USUAL_REPLICAS <= servers:
        return Finding(
            False, "WB245", f"stream {name} has num_replicas = {copies} in a cluster",
            "nothing is stored while one certain server is away; if that server's disk is lost, so is the stream",
            f"nats stream edit {name} --replicas={USUAL_REPLICAS}",
        )  # fmt: skip
    return None


def history_problem(changes: Mapping[str, Any], snapshots: Mapping[str, Any]) -> Problem | None:
    """Return what is wrong if snapshots are kept for longer than the changes that must follow them. Both are configurations."""
    kept_ns, snapshots_ns = (int(config.get("max_age") or 0) for config in (changes, snapshots))
    if not kept_ns or 0 < snapshots_ns <= kept_ns:
        return None
    name, kept = changes["name"], span(kept_ns / 1e9)
    until, fix = "without a limit", f"nats stream edit {snapshots['name']} --max-age={max(1, kept_ns // 10**9)}s"
    if snapshots_ns:
        until = f"for {span(snapshots_ns / 1e9)}"
        fix = f"nats stream edit {name} --max-age={snapshots_ns // _DAY_NS + 1}d   # or for snapshots: {fix}"
    return Problem(
        "WB246", f"stream {name} keeps changes for {kept}, stream {snapshots['name']} keeps snapshots {until}",
        means=f"from a snapshot that is older than {kept}, or takes longer, readers cannot go on: they ask for another",
        fix=fix,
    )  # fmt: skip
