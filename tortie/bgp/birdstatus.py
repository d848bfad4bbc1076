"""BIRD's state in the words that the BGP agent has for its own: Status, and the table's rows.

Two daemons, one per family; one that does not answer counts as not running. Of what the agent tells, BIRD
does not know: which rule rejected a prefix, what convergence took, which routes the kernel refused.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from tortie.bgp import birdctl, birdoutput
from tortie.bgp.birdoutput import Daemon, Protocol, Route
from tortie.bgp.prefix import Version, version
from tortie.bgp.status import PeerState, PeerStatus, PeerType, RouteStatus, Status
from tortie.bgp.table import Origin, TableRoute
from tortie.core.errors import PeerError
from tortie.core.paths import Paths

KERNEL = "kernel1"  # BIRD's name for the kernel protocol, of which there is one

_TYPES: Mapping[str, PeerType] = {
    "Mesh": "node-to-node mesh",
    "Node": "node specific",
    "Global": "global",
    "Local_Workload": "local workload",
}
_SESSION = re.compile(r"(Mesh|Node|Global|Local_Workload)_.+?(?:_port_(\d+))?")
_STATES = ("down", "start", "up", "wait", "feed", "stop", "flush")
_ORIGINS: Mapping[str, Origin] = {"static": "static", "direct": "direct", "kernel": "kernel"}
_FILTERED = "refused by an import filter"


def sockets(paths: Paths) -> Mapping[Version, str]:
    return {4: paths.bird_ctl, 6: paths.bird6_ctl}


# --- asking ---------------------------------------------------------------------------------------


def read(paths: Paths) -> Status | None:
    """None unless BIRD runs here, for one family at least."""
    found = []
    for path in sockets(paths).values():
        try:
            daemon = birdoutput.daemon(birdctl.ask(path, "show status"))
            found.append((daemon, list(birdoutput.protocols(birdctl.ask(path, "show protocols all")))))
        except PeerError:
            continue
    return status(found) if found else None


def read_table(paths: Paths) -> list[TableRoute]:
    """Every path to every prefix. Raises PeerError."""
    rows: list[TableRoute] = []
    for path in sockets(paths).values():
        if not birdctl.there(path):
            continue
        found = list(birdoutput.protocols(birdctl.ask(path, "show protocols all")))
        listed = [
            list(birdoutput.routes(birdctl.ask(path, f"show route{what}"))) for what in ("", " filtered")
        ]
        exported = any(one.name == KERNEL for one in found)  # a family without an address has none
        listed.append(
            list(birdoutput.routes(birdctl.ask(path, f"show route export {KERNEL}"))) if exported else []
        )
        rows += table(found, *listed)
    return rows


# --- pure -----------------------------------------------------------------------------------------


def status(found: Iterable[tuple[Daemon, Iterable[Protocol]]]) -> Status:
    """`found`: what each daemon says."""
    pairs = [(daemon, list(protocols)) for daemon, protocols in found]
    daemons = [daemon for daemon, _ in pairs]
    everything = [protocol for _, protocols in pairs for protocol in protocols]
    kernels = [one for one in everything if one.kind == "Kernel"]
    peers = sorted(filter(None, map(_peer, everything)), key=lambda one: one.address)
    return Status(
        speaker="bird",
        version=f"BIRD {daemons[0].version}",
        started=max(one.booted for one in daemons),
        updated=0.0,
        configured=max(one.configured for one in daemons),
        router_id=daemons[0].router_id,
        configuration="loaded",
        starting=any(one.recovering for one in daemons),
        peers=tuple(peers),
        routes=RouteStatus(wanted=sum(one.count("exported") for one in kernels)),
    )


def _peer(protocol: Protocol) -> PeerStatus | None:
    """None if it is no session that Calico would list."""
    details = protocol.details
    match = _SESSION.fullmatch(details.get("Description") or protocol.name)
    if protocol.kind != "BGP" or not match:
        return None
    address = details.get("Neighbor address", "").partition("%")[0]
    error = details.get("Last error", "")
    filtered = protocol.count("filtered")
    held = re.search(r"/(\d+)", details.get("Hold timer", ""))
    up = protocol.info.split(" ")[0] == "Established"
    state = protocol.state if protocol.state in _STATES else "down"
    return PeerStatus(
        address=address,
        type=_TYPES[match[1]],
        family=6 if ":" in address else 4,
        port=int(details.get("Neighbor port") or match[2] or 0),
        state=cast("PeerState", state),
        since=protocol.since,
        bgp_state=details.get("BGP state", "").split(" ")[0] or "Down",
        info=protocol.info,
        last_error=error,
        last_notification=error if error.startswith(("Received:", "BGP Error:")) else "",
        hold_time=int(held[1]) if held else 0,
        received=protocol.count("imported") + filtered,
        over_limit="[HIT]" in details.get("Receive limit", ""),
        rejected=filtered,
        rejected_because={_FILTERED: filtered} if filtered else {},
        announced=protocol.count("exported"),
        end_of_rib=up,
    )


def table(
    protocols: Iterable[Protocol],
    known: Iterable[Route],
    filtered: Iterable[Route],
    exported: Iterable[Route],
) -> Iterator[TableRoute]:
    """By prefix, used paths first; `exported`: those that BIRD gives to the kernel, next hops merged."""
    peers = {one.name: one.details.get("Neighbor address", "").partition("%")[0] for one in protocols}
    kernel = {route.prefix: {gateway for gateway, _ in route.hops} for route in exported}
    rows = [_row(route, peers, kernel) for route in known]
    rows += [_row(route, peers, {}, _FILTERED) for route in filtered]
    yield from sorted(rows, key=lambda row: (version(row.prefix), row.prefix, not row.used))


def _row(
    route: Route, peers: Mapping[str, str], kernel: Mapping[str, set[str]], refused: str = ""
) -> TableRoute:
    origin = _ORIGINS.get(route.protocol.rstrip("0123456789"), "peer")
    gateway, interface = route.hops[0] if route.hops else ("", "")
    programmed = route.prefix in kernel
    shared = programmed and gateway != "" and gateway in kernel[route.prefix]
    used = not refused and ((route.best and (programmed or origin != "peer")) or shared)
    reason = refused
    if not used and not refused:
        reason = "not programmed by BGP" if route.best else "another is better"
    return TableRoute(
        prefix=route.prefix,
        origin=origin,
        peer=peers.get(route.protocol, "") if origin == "peer" else "",
        next_hop=gateway,
        interface=interface or (route.kind if route.kind != "unicast" else ""),
        used=used,
        reason=reason,
    )
