"""Choosing the node's address: every method, every reason, and what the Node resource gets."""

import logging

import pytest

from tortie.core.errors import ConfigError
from tortie.node import addressing, autodetect
from tortie.node.autodetect import Detection, HostAddress, Method, detect, parse_method

pytestmark = pytest.mark.unit

HOST = [
    HostAddress("lo", 1, "127.0.0.1/8"),
    HostAddress("eth0", 2, "10.0.0.7/24"),
    HostAddress("eth0", 2, "fd00::7/64"),
    HostAddress("eth0", 2, "fe80::1/64"),
    HostAddress("eth1", 3, "192.0.2.7/26"),
    HostAddress("docker0", 4, "172.17.0.1/16"),
    HostAddress("cali123", 5, "10.9.9.9/32"),
]


def chosen(text: str, version: int = 4, **kwargs: object) -> str:
    return detect(parse_method(text, "M"), version, HOST, **kwargs).chosen  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "version", "address"),
    [
        ("", 4, "192.0.2.7/26"),  # the later interface, as Calico has always chosen
        ("first-found", 6, "fd00::7/64"),
        ("interface=eth0", 4, "10.0.0.7/24"),
        ("interface=docker.*", 4, "172.17.0.1/16"),  # no default exclusions here
        ("interface=en.*, eth0", 4, "10.0.0.7/24"),
        ("interface=wlan", 4, ""),
        ("skip-interface=eth1", 4, "10.0.0.7/24"),
        ("cidr=10.0.0.0/8", 4, "10.9.9.9/32"),  # the first by order, whatever its interface
        ("cidr=10.0.0.0/24,192.0.2.0/24", 4, "192.0.2.7/26"),
        ("cidr=198.51.100.0/24", 4, ""),
    ],
)
def test_methods(method: str, version: int, address: str) -> None:
    assert chosen(method, version) == address


def test_methods_that_ask_elsewhere() -> None:
    assert chosen("can-reach=192.0.2.99", reached="192.0.2.7") == "192.0.2.7/26"
    assert chosen("can-reach=example.org", reached="") == ""
    assert chosen("kubernetes-internal-ip", internal_ips=["fd00::7", "10.0.0.7"]) == "10.0.0.7/24"
    assert chosen("kubernetes-internal-ip", internal_ips=["203.0.113.5"]) == "203.0.113.5"
    without = detect(Method("kubernetes-internal-ip"), 4, HOST)
    assert without.chosen == "" and "when not running on a Kubernetes cluster" in without.failure


def test_every_candidate_says_why() -> None:
    found = detect(parse_method("", "M"), 4, HOST)
    reasons = {c.address.interface: (c.taken, c.reason) for c in found.candidates}
    assert reasons == {
        "eth1": (True, "first address found"),
        "eth0": (False, "another address came first"),
        "lo": (False, "not a global unicast address"),
        "docker0": (False, "interface name is on the default exclusion list"),
        "cali123": (False, "interface name is on the default exclusion list"),
    }
    assert str(found.candidates[0]).startswith("cali123 10.9.9.9/32: left:")


def test_a_running_node_keeps_its_address_while_it_fits() -> None:
    assert chosen("", keep="10.0.0.7/24") == "10.0.0.7/24"
    assert chosen("interface=eth1", keep="10.0.0.7/24") == "192.0.2.7/26"
    assert chosen("", keep="10.0.0.99/24") == "192.0.2.7/26", "an address that is gone is not kept"


@pytest.mark.parametrize("bad", ["first", "interface", "interface=[", "cidr=10.0.0.0/99", "mac=x", "=x"])
def test_bad_methods_name_the_variable(bad: str) -> None:
    with pytest.raises(ConfigError, match="IP_AUTODETECTION_METHOD"):
        parse_method(bad, "IP_AUTODETECTION_METHOD")


def test_addresses_owned_by_other_nodes() -> None:
    nodes = {"me": ["10.0.0.7/24", ""], "other": ["10.0.0.8/24", "fd00::8/64"]}
    assert autodetect.owners(nodes, "me", ["10.0.0.7/24", "fd00::7/64"]) == {}
    assert autodetect.owners(nodes, "me", ["10.0.0.8/32", ""]) == {"10.0.0.8/32": "other"}


# --- what the Node resource gets --------------------------------------------------------------------


def decide(env: dict[str, str], v4: str = "", v6: str = "") -> tuple[str, str]:
    def find(method: Method, version: int) -> Detection:
        return detect(method, version, HOST)

    found = addressing.decide(env, {4: v4, 6: v6}, HOST, find)
    return found.ipv4, found.ipv6


@pytest.mark.parametrize(
    ("env", "stored", "result"),
    [
        ({}, ("", ""), ("192.0.2.7/26", "")),  # nothing known: IPv4 is detected, IPv6 is not
        ({}, ("10.0.0.7/24", ""), ("10.0.0.7/24", "")),
        ({"IP": "autodetect"}, ("10.0.0.7/24", ""), ("192.0.2.7/26", "")),
        ({"IP": "autodetect", "IP6": "autodetect"}, ("", ""), ("192.0.2.7/26", "fd00::7/64")),
        ({"IP": "none", "IP6": "autodetect"}, ("", ""), ("", "fd00::7/64")),
        ({"IP": "none"}, ("10.0.0.7/24", "fd00::7/64"), ("10.0.0.7/24", "fd00::7/64")),
        ({"IP": "10.0.0.7"}, ("", ""), ("10.0.0.7/24", "")),  # takes the interface's prefix length
        ({"IP": "203.0.113.1"}, ("", ""), ("203.0.113.1/32", "")),  # not local: a warning
        ({"IP": "203.0.113.1/24", "IP6": "fd00::9/64"}, ("", ""), ("203.0.113.1/24", "fd00::9/64")),
        (
            {"IP": "autodetect", "IP_AUTODETECTION_METHOD": "interface=x"},
            ("10.0.0.7/24", ""),
            ("10.0.0.7/24", ""),
        ),
    ],
)
def test_decision(env: dict[str, str], stored: tuple[str, str], result: tuple[str, str]) -> None:
    assert decide(env, *stored) == result


@pytest.mark.parametrize(
    "env",
    [
        {"IP": "none"},
        {"IP": "autodetect", "IP_AUTODETECTION_METHOD": "interface=x"},
        {"IP": "fd00::7"},
        {"IP": "10.0.0.7\n"},
        {"IP": "not an address"},
        {"IP6": "10.0.0.7", "IP": "10.0.0.7"},
        {"IP": "autodetect", "IP6": "autodetect", "IP6_AUTODETECTION_METHOD": "interface=eth1"},
    ],
)
def test_what_cannot_start(env: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        decide(env)


def test_candidates_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        decide({"IP": "autodetect"})
    assert (
        "candidate docker0 172.17.0.1/16: left: interface name is on the default exclusion list"
        in caplog.text
    )
    assert "Using autodetected IPv4 address 192.0.2.7/26" in caplog.text


def test_interfaces_are_listed_for_the_configured_families() -> None:
    def find(method: Method, version: int) -> Detection:
        return detect(method, version, HOST)

    found = addressing.decide({"IP": "autodetect"}, {4: "", 6: ""}, HOST, find)
    assert [(i.name, i.addresses) for i in found.interfaces] == [
        ("eth0", ("10.0.0.7",)),
        ("eth1", ("192.0.2.7",)),
    ]
