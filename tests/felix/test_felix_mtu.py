"""The MTU of pods: from the host's interfaces and the encapsulations in use, and how it is published."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.felix.objects import pool
from tortie.core.errors import KernelError
from tortie.datastore.types.cluster import FelixConfiguration
from tortie.datastore.types.meta import ObjectMeta
from tortie.felix import mtu
from tortie.felix.config import Sources, resolve
from tortie.linux.links import IFF_RUNNING, IFF_UP, Link

pytestmark = pytest.mark.unit

_ETH = mtu.Uplinks(re.compile("^eth.*"))


def link(name: str, size: int, *, running: bool = True) -> Link:
    return Link(name, 1, IFF_UP | (IFF_RUNNING if running else 0), size)


def of_pods(host: int, environment: dict[str, str], *pools: tuple[Any, Any]) -> int:
    sources = Sources("n", {f"FELIX_{name}": value for name, value in environment.items()})
    for key, value in pools:
        sources.take("IPPool", key.name, value)
    wanted = resolve(sources)[0].pod_mtu
    assert wanted is not None
    return mtu.of_pods(host, wanted.tunnels)


def test_the_hosts_is_the_smallest_of_its_running_uplinks() -> None:
    links = [link("eth0", 1500), link("eth1", 1400), link("eth2", 1300, running=False), link("docker0", 900)]
    assert mtu.of_host(links, _ETH) == 1400
    assert mtu.of_host(links, mtu.Uplinks(None)) == 1460


_PLAIN, _IPIP = pool("a", "10.0.0.0/16"), pool("b", "10.1.0.0/16", ipip="CrossSubnet")
_VXLAN, _VXLAN6 = pool("c", "10.2.0.0/16", vxlan="Always"), pool("d", "fd00:2::/64", vxlan="Always")


@pytest.mark.parametrize(
    ("expected", "environment", "pools"),
    [
        (1500, {}, [_PLAIN]),
        (1480, {}, [_PLAIN, _IPIP]),
        (1450, {}, [_IPIP, _VXLAN]),
        (1430, {}, [_VXLAN, _VXLAN6]),
        (1440, {"WIREGUARDENABLED": "true"}, [_IPIP]),
        (1420, {"WIREGUARDENABLEDV6": "true"}, []),
        (1340, {"WIREGUARDENABLED": "1", "WIREGUARDHOSTENCRYPTIONENABLED": "1", "CLUSTERTYPE": "a,AKS"}, []),
        (1500, {"VXLANMTU": "1200"}, [_PLAIN]),  # VXLAN is not in use
        (1200, {"VXLANMTU": "1200"}, [_IPIP, _VXLAN]),
        (8000, {"IPINIPMTU": "8000"}, [_IPIP]),
    ],
)  # fmt: skip
def test_pods_get_the_least_of_the_encapsulations_in_use(
    expected: int, environment: dict[str, str], pools: list[tuple[Any, Any]]
) -> None:
    assert of_pods(1500, environment, *pools) == expected


def test_the_pattern_and_the_file_are_configured() -> None:
    sources = Sources("n", {"CALICO_LIB_DIR": "/l", "FELIX_REQUIREMTUFILE": "true"})
    spec = {"mtuIfacePattern": "^bond"}
    sources.take(
        "FelixConfiguration", "default", FelixConfiguration(metadata=ObjectMeta(name="default"), spec=spec)
    )
    wanted = resolve(sources)[0].pod_mtu
    assert wanted is not None and (wanted.path, wanted.required) == ("/l/mtu", True)
    assert "bond0" in wanted.uplinks and "eth0" not in wanted.uplinks


def test_our_own_tunnels_are_no_uplinks_whatever_the_pattern_says() -> None:
    """Else each look would find the last one's MTU, and take the encapsulation off once more."""
    environment = {"FELIX_MTUIFACEPATTERN": ".*", "FELIX_WIREGUARDINTERFACENAME": "eth-wg"}
    config, _ = resolve(Sources("n", environment))
    ours = ("tunl0", "vxlan.calico", "vxlan-v6.calico", "eth-wg", "wg-v6.cali")
    links = [link("eth0", 1500), *(link(name, 1280) for name in ours)]
    assert config.pod_mtu is not None
    for uplinks in (config.pod_mtu.uplinks, config.overlay.uplinks, config.wireguard.uplinks):
        assert mtu.of_host(links, uplinks) == 1500


def test_the_file_follows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "lib" / "mtu"
    wanted = mtu.Wanted(str(path), _ETH, ((0, mtu.VXLAN_V4),))
    for size in (1500, 1500, 9000):
        mtu.publish(wanted, [link("eth0", size)])
        assert path.read_text() == str(size - 50)
    assert path.stat().st_mode & 0o777 == 0o644
    assert len(caplog.messages) == 2, "said only when it changes"


def test_a_file_that_cannot_be_written_is_fatal_only_if_it_must_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lib").touch()
    path = str(tmp_path / "lib" / "mtu")
    mtu.publish(mtu.Wanted(path, _ETH), [])
    assert "new pods may get a wrong MTU" in caplog.text
    with pytest.raises(KernelError, match=re.escape(path)):
        mtu.publish(mtu.Wanted(path, _ETH, required=True), [])


def test_more_than_the_host_has_is_only_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mtu.publish(mtu.Wanted(str(tmp_path / "mtu"), _ETH, ((8000, 20),)), [link("eth0", 1500)])
    assert (tmp_path / "mtu").read_text() == "8000"
    assert "Configured MTU is larger than detected host interface MTU" in caplog.text
