"""Results in every version of the format, to the letter, and results of others."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.cni import result
from tortie.cni.protocol import VERSIONS
from tortie.cni.result import IP, Interface, Result, Route
from tortie.core.errors import CniError

pytestmark = pytest.mark.unit

DUAL = Result(
    interfaces=(Interface("cali1"), Interface("eth0", "02:00:00:00:00:01", 1440, "/run/netns/x")),
    ips=(IP("10.0.0.1/32", 1), IP("fd00::1/128", 1)),
    routes=(Route("0.0.0.0/0", "169.254.1.1"), Route("::/0", "fe80::1")),
)

MODERN = """{
    "cniVersion": "%s",
    "interfaces": [
        {
            "name": "cali1"
        },
        {
            "name": "eth0",
            "mac": "02:00:00:00:00:01",
            "mtu": 1440,
            "sandbox": "/run/netns/x"
        }
    ],
    "ips": [
        {
            "interface": 1,
            "address": "10.0.0.1/32"
        },
        {
            "interface": 1,
            "address": "fd00::1/128"
        }
    ],
    "routes": [
        {
            "dst": "0.0.0.0/0",
            "gw": "169.254.1.1"
        },
        {
            "dst": "::/0",
            "gw": "fe80::1"
        }
    ]
}
"""

MIDDLE = """{
    "cniVersion": "%s",
    "interfaces": [
        {
            "name": "cali1"
        },
        {
            "name": "eth0",
            "mac": "02:00:00:00:00:01",
            "sandbox": "/run/netns/x"
        }
    ],
    "ips": [
        {
            "version": "4",
            "interface": 1,
            "address": "10.0.0.1/32"
        },
        {
            "version": "6",
            "interface": 1,
            "address": "fd00::1/128"
        }
    ],
    "routes": [
        {
            "dst": "0.0.0.0/0",
            "gw": "169.254.1.1"
        },
        {
            "dst": "::/0",
            "gw": "fe80::1"
        }
    ],
    "dns": {}
}
"""

OLDEST = """{
    "cniVersion": "%s",
    "ip4": {
        "ip": "10.0.0.1/32",
        "routes": [
            {
                "dst": "0.0.0.0/0",
                "gw": "169.254.1.1"
            }
        ]
    },
    "ip6": {
        "ip": "fd00::1/128",
        "routes": [
            {
                "dst": "::/0",
                "gw": "fe80::1"
            }
        ]
    },
    "dns": {}
}
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_to_the_letter(version: str) -> None:
    form = OLDEST if version < "0.3.0" else MIDDLE if version < "1.0.0" else MODERN
    assert result.encode(DUAL, version).decode() == form % version


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_written_can_be_read(version: str) -> None:
    read = result.decode(result.encode(DUAL, version), "test")
    assert [ip.address for ip in read.ips] == ["10.0.0.1/32", "fd00::1/128"]
    assert read.routes == DUAL.routes
    if version >= "1.0.0":
        assert read == DUAL


def test_an_old_result_without_addresses_cannot_be_said() -> None:
    with pytest.raises(CniError, match="no valid IP addresses"):
        result.encode(Result(), "0.2.0")
    assert json.loads(result.encode(Result(), "1.0.0")) == {"cniVersion": "1.0.0"}


def test_results_of_others() -> None:
    read = result.decode(
        b'{"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.0.0.5/24", "gateway": "10.0.0.1"}],'
        b'"routes": [{"dst": "0.0.0.0/0"}, {"dst": "<nil>"}], "dns": {"nameservers": ["x"]}, "more": 1}',
        "x",
    )
    assert read.ips == (IP("10.0.0.5/24", None, "10.0.0.1"),)
    assert read.routes == (Route("0.0.0.0/0"),) and read.dns == (("nameservers", ["x"]),)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b'{"ips": 7}', b'{"ips": [{}]}', b'{"ips": [{"address": "x"}]}', b"\xff"]
)
def test_what_is_no_result(data: bytes) -> None:
    with pytest.raises(CniError) as caught:
        result.decode(data, "the other plugin")
    assert caught.value.code == 6 and "the other plugin" in caught.value.msg


def test_only_what_concerns_one_interface() -> None:
    whole = Result(
        interfaces=(Interface("eth0"), Interface("eth0", sandbox="/x"), Interface("net1", sandbox="/x")),
        ips=(IP("10.0.0.1/32", 1), IP("10.0.0.2/32", 2), IP("10.0.0.3/32")),
    )
    assert [ip.address for ip in whole.of_interface("eth0").ips] == ["10.0.0.1/32", "10.0.0.3/32"]


addresses = st.ip_addresses(v=4) | st.ip_addresses(v=6)


@given(
    st.lists(addresses, min_size=1, max_size=4),
    st.sampled_from([v for v in VERSIONS if v >= "1.0.0"]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_round_trip(ips: list[object], version: str, name: str) -> None:
    singles = tuple(IP(f"{ip}/{128 if ':' in str(ip) else 32}", 0) for ip in ips)
    one = Result(interfaces=(Interface(name, sandbox="/x"),), ips=singles)
    assert result.decode(result.encode(one, version), "x") == one
