"""Metrics: every number of the status is there, and no label can break the format."""

import pytest
from msgspec.structs import replace

from tests.support.peers import PEER
from tortie.bgp.metrics import text
from tortie.bgp.status import RouteStatus, Status

pytestmark = pytest.mark.unit

_PEER = replace(
    PEER,
    since=1_700_000_000.5,
    received=12,
    stale=1,
    rejected=3,
    rejected_because={'a "quoted"\nreason \\': 3},
    announced=4,
)
_DOWN = replace(_PEER, address="fd00::9", family=6, type="global", state="start", bgp_state="Active")
_STATUS = Status(
    started=0,
    updated=0,
    peers=(_PEER, replace(_PEER, address="10.0.0.3"), _DOWN),
    routes=RouteStatus(wanted=7, failed=2, left_out=5),
    convergence=0.25,
)


def test_every_number() -> None:
    lines = text(_STATUS).splitlines()
    for line in (
        "tortie_bgp_up 1",
        'tortie_bgp_sessions{family="4",state="Established"} 2',
        'tortie_bgp_sessions{family="6",state="Active"} 1',
        'tortie_bgp_peer_up{peer="10.0.0.2",type="node-to-node mesh"} 1',
        'tortie_bgp_peer_up{peer="fd00::9",type="global"} 0',
        'tortie_bgp_peer_since{peer="10.0.0.2",type="node-to-node mesh"} 1700000000.5',
        'tortie_bgp_peer_received{peer="10.0.0.2",type="node-to-node mesh"} 12',
        'tortie_bgp_peer_stale{peer="10.0.0.2",type="node-to-node mesh"} 1',
        'tortie_bgp_peer_rejected{peer="10.0.0.2",type="node-to-node mesh"} 3',
        'tortie_bgp_peer_over_limit{peer="10.0.0.2",type="node-to-node mesh"} 0',
        'tortie_bgp_peer_announced{peer="10.0.0.2",type="node-to-node mesh"} 4',
        'tortie_bgp_peer_rejected_by{peer="10.0.0.2",reason="a \\"quoted\\"\\nreason \\\\"} 3',
        "tortie_bgp_routes 7",
        "tortie_bgp_routes_failed 2",
        "tortie_bgp_prefixes_left_out 5",
        "tortie_bgp_convergence_seconds 0.25",
    ):
        assert line in lines
    named = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert {line.split("{")[0].split()[0] for line in lines if not line.startswith("#")} <= named


def test_without_an_agent() -> None:
    assert text(None).splitlines()[-1] == "tortie_bgp_up 0"
