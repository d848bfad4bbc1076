"""A BGP peer as an agent tells of it; tests change what they are about."""

from tortie.bgp.status import PeerStatus

PEER = PeerStatus(
    address="10.0.0.2",
    type="node-to-node mesh",
    family=4,
    port=0,
    state="up",
    since=1_000_000_000.0,
    bgp_state="Established",
    info="Established",
)
