"""bgp.json and the status file: what is written is read, what was tampered with is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.bgp_agent import agent
from tortie.bgp import ask, status
from tortie.bgp.config import Block, Config, Local, Peer, Pool, decode, encode, handed_over, load
from tortie.bgp.session import failure_text
from tortie.bgp.status import PeerStatus, Status
from tortie.core.errors import ConfigError
from tortie.core.paths import Paths

pytestmark = pytest.mark.unit

_CONFIG = Config(
    sessions="0123456789abcdef",
    local=Local(name="n1", router_id="10.0.0.1", as_number=64512, addresses=("10.0.0.1", "fd00::1")),
    peers=(Peer(address="10.0.0.2", kind="mesh", local_as=64512, peer_as=64512, local_address="10.0.0.1"),),
    pools=(Pool(cidr="192.168.0.0/16", tunnel="always"),),
    blocks=(Block(cidr="192.168.1.0/26"),),
)


def test_round_trip() -> None:
    assert decode(encode(_CONFIG), "here") == _CONFIG
    assert encode(_CONFIG) == encode(decode(encode(_CONFIG), "here")), "the same text for the same content"


def test_addresses_by_version() -> None:
    assert (_CONFIG.local.address(4), _CONFIG.local.address(6)) == ("10.0.0.1", "fd00::1")
    assert Local(name="n", router_id="1.1.1.1", as_number=1).address(4) == ""


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert load(str(tmp_path / "bgp.json")) is None


def _with(path: list[Any], value: Any) -> bytes:
    document = json.loads(encode(_CONFIG))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], 2),
        (["unknown"], 1),
        (["local", "router_id"], "10.0.0.1; reload"),
        (["local", "addresses"], ["10.0.0.1\nneighbor"]),
        (["peers", 0, "address"], "10.0.0.2 announce eor"),
        (["peers", 0, "address"], "10.0.0.2/31"),
        (["peers", 0, "local_as"], "64512"),
        (["peers", 0, "local_address"], "fe80::1%eth0"),
        (["peers", 0, "gateway"], "router"),
        (["peers", 0, "next_hop"], "mine"),
        (["pools", 0, "cidr"], "192.168.0.1/16"),
        (["blocks", 0, "cidr"], "192.168.1.0/26 10.0.0.0/8"),
        (["excluded_next_hops"], ["x"]),
        (["peers"], [json.loads(encode(_CONFIG))["peers"][0]] * 2),
    ],
)
def test_what_could_reach_exabgp_or_the_kernel_is_checked(path: list[Any], value: Any) -> None:
    with pytest.raises(ConfigError, match=r"bgp\.json"):
        decode(_with(path, value), "bgp.json")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"local": 1}', b"\xff"])
def test_garbage(data: bytes) -> None:
    with pytest.raises(ConfigError):
        decode(data, "bgp.json")


# --- status -------------------------------------------------------------------------------------


def test_status_is_read_as_written(tmp_path: Path) -> None:
    peer = PeerStatus(
        address="10.0.0.2", type="global", family=4, port=0, state="up", since=1.0, bgp_state="Established",
        info="Established",
    )  # fmt: skip
    written = Status(started=1.0, updated=2.0, peers=(peer,))
    path = tmp_path / "status"
    assert status.read(str(path)) is None
    path.write_bytes(status.encode(written))
    found = status.read(str(path))
    assert found == written
    path.write_bytes(b"{")
    with pytest.raises(ConfigError, match=str(path)):
        status.read(str(path))


def test_an_agent_is_known_by_its_socket(tmp_path: Path) -> None:
    """Not by a process: in a container it has a number that out here is nobody's, or another's."""
    paths, said = Paths(run=str(tmp_path)), Status(started=1.0, updated=2.0)
    assert not status.runs(paths)
    with agent(tmp_path, said):
        assert status.runs(paths) and ask.status(paths) == said
    assert not status.runs(paths) and ask.status(paths) is None, "what it left does not count"


@pytest.mark.parametrize(
    ("reason", "was_up", "text"),
    [
        ("notification received (6,2)", True, "received Cease: Administrative shutdown (6,2)"),
        ("notification sent (4,0)", True, "sent Hold timer expired (4,0)"),
        ("notification received (2,2)", False, "received OPEN error: Bad peer AS (2,2)"),
        ("notification sent (9,9)", False, "sent unknown error (9,9)"),
        ("closing connection", True, "connection lost"),
        ("closing connection", False, "connection closed before the session was up"),
        ("closing connection: ECONNREFUSED", False, "connection refused"),
        ("closing connection: ECONNRESET", True, "connection reset by the peer"),
        ("closing connection: EPIPE", True, "connection lost"),
        ("", True, "error inside ExaBGP"),
        ("stop, message [removed]", True, "stop, message [removed]"),
    ],
)
def test_reasons_in_words(reason: str, was_up: bool, text: str) -> None:
    assert failure_text(reason, was_up) == text


def test_pools_that_change_hands() -> None:
    local = Local(name="n", router_id="1.1.1.1", as_number=1)

    def config(**programmed: bool) -> Config:
        return Config(
            local=local, pools=tuple(Pool(cidr=cidr, programmed=ours) for cidr, ours in programmed.items())
        )

    before = config(a=True, b=True, c=False, d=True)
    assert handed_over(before, config(a=True, b=False, c=False)) == ["b"], "a pool that is gone is nobody's"
    assert handed_over(config(c=False), before) == []
