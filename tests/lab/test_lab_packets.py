"""Packets of every protocol between two namespaces, with and without a rule in their way."""

import socket
from collections.abc import Callable, Iterator

import pytest

from tests.netns_lab import Namespace
from tortie.lab.packets import ICMP, ICMP6, SCTP, TCP, UDP, Attempt, Listeners, crc32c

Pair = tuple[Namespace, Namespace]


@pytest.fixture
def pair(make_netns: Callable[[], Namespace]) -> Iterator[Pair]:
    client, server = make_netns(), make_netns()
    client.veth("eth0", "eth0", server)
    for number, one in enumerate((client, server), 1):
        one.sh(f"ip addr add 10.0.0.{number}/24 dev eth0")
        one.sh(f"ip addr add fd00::{number}/64 dev eth0 nodad")
    yield client, server


def attempts(pair: Pair) -> list[Attempt]:
    client, server = pair[0].fd, pair[1].fd
    return [
        Attempt(client, server, address, protocol, port, 3000 + number, icmp)
        for number, (protocol, port, icmp) in enumerate(
            [(TCP, 80, (0, 0)), (UDP, 53, (0, 0)), (SCTP, 7, (0, 0)), (253, 0, (0, 0))]
        )
        for address in ("10.0.0.2", "fd00::2")
    ] + [
        Attempt(client, server, "10.0.0.2", ICMP, 0, 9, (8, 1)),
        Attempt(client, server, "10.0.0.2", ICMP, 0, 9, (5, 0)),
        Attempt(client, server, "fd00::2", ICMP6, 0, 9, (128, 3)),
        Attempt(client, server, "10.0.0.2", TCP, 81),  # where nobody listens
    ]


@pytest.mark.kernel
def test_what_arrives(pair: Pair) -> None:
    sent = attempts(pair)
    expected = [one.port != 81 for one in sent]
    with Listeners([pair[1].fd], tcp=[80], udp=[53], protocols=[ICMP, ICMP6, SCTP, 253]) as listeners:
        assert listeners.arrived(sent, expected) == expected
        assert listeners.arrived(sent[:1], [True], settle=0) == [True]  # the same source port again
        pair[1].sh("iptables -A INPUT -p sctp --dport 7 -m conntrack --ctstate NEW -j DROP")
        pair[1].sh("iptables -A INPUT -p icmp --icmp-type 8/1 -j DROP")
        pair[1].sh("ip6tables -A INPUT -p tcp -j DROP")
        pair[0].sh("iptables -A OUTPUT -p udp --sport 3001 -j DROP")
        stopped = {
            (TCP, socket.AF_INET6, 0), (UDP, socket.AF_INET, 0), (SCTP, socket.AF_INET, 0),
            (ICMP, socket.AF_INET, 1),
        }  # fmt: skip
        passing = [one.port != 81 and (one.protocol, one.family, one.icmp[1]) not in stopped for one in sent]
        arrived = listeners.arrived(sent, passing)
        lost = [one for one, was, now in zip(sent, expected, arrived, strict=True) if was and not now]
        assert len(lost) == 4 and {(one.protocol, one.family, one.icmp[1]) for one in lost} == stopped


@pytest.mark.unit
def test_sctp_checksum() -> None:
    """The check value of CRC-32C (RFC 3720, appendix B.4 has more)."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
