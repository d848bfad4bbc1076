"""Prefix arithmetic beside the standard library's."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.bgp.prefix import Network, canonical, is_link_local, network, number

pytestmark = pytest.mark.unit

_interfaces = st.one_of(
    st.builds(lambda a, n: f"{ipaddress.IPv4Address(a)}/{n}", st.integers(0, 2**32 - 1), st.integers(0, 32)),
    st.builds(
        lambda a, n: f"{ipaddress.IPv6Address(a)}/{n}", st.integers(0, 2**128 - 1), st.integers(0, 128)
    ),
)


@given(_interfaces)
def test_a_prefix_is_what_the_standard_library_says(text: str) -> None:
    expected = ipaddress.ip_network(text, strict=False)
    found = network(text)
    assert (found.version, found.value, found.length) == (
        expected.version,
        int(expected.network_address),
        expected.prefixlen,
    )
    assert ipaddress.ip_network(canonical(text)) == expected
    assert canonical(canonical(text)) == canonical(text)


@given(_interfaces, _interfaces)
def test_containment(one: str, other: str) -> None:
    a, b = ipaddress.ip_network(one, strict=False), ipaddress.ip_network(other, strict=False)
    inside = a.version == b.version and b.subnet_of(a)  # type: ignore[arg-type]
    assert network(one).contains(network(other)) == inside


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10.0.0.1", "10.0.0.1/32"),
        ("10.0.0.77/26", "10.0.0.64/26"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("FD00::1", "fd00::1/128"),
        ("fd00:0:0:0::/122", "fd00::/122"),
        ("::ffff:1.2.3.4", "::ffff:1.2.3.4/128"),
    ],
)
def test_text_as_the_kernel_has_it(text: str, shown: str) -> None:
    assert canonical(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "10.0.0.1/33",
        "10.0.0.1/",
        "10.0.0.1/-1",
        "10.0.0.1/٣",
        "10.0.0/8",
        "fe80::1%eth0",
        "::1/129",
        "a/b/c",
    ],
)
def test_what_is_no_prefix(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        network(text)


def test_addresses() -> None:
    assert number("10.0.0.9")[1] < number("10.0.0.10")[1]
    assert is_link_local("fe80::1") and is_link_local("febf::1")
    assert not is_link_local("fec0::1") and not is_link_local("169.254.0.1")
    assert str(Network(6, 0, 0)) == "::/0"
