"""The driver against a real kernel: pods whose bandwidth is limited."""

import json
from collections.abc import Callable

import pytest

from tests.felix.driver_lab import Felix, only_iptables
from tests.felix.node_lab import Node
from tortie.felix.calc.model import Bandwidth
from tortie.felix.dataplane.shaping import device_name

pytestmark = pytest.mark.kernel


@only_iptables
def test_bandwidth_is_limited_in_both_directions(node: Node, make_felix: Callable[..., Felix]) -> None:
    one, other = node.pod("one"), node.pod("other")
    node.ns.sh("tc qdisc add dev caliother root handle 1: tbf rate 8mbit burst 32kb latency 25ms")
    daemon = make_felix()
    daemon.add(other, "open")
    daemon.add(one, "open", ingress=Bandwidth(8_000_000, 400_000), egress=Bandwidth(16_000_000, 400_000))
    assert daemon.apply(), daemon.driver.failures()
    ifb = device_name(one.interface)
    assert "rate 8Mbit burst 50000b" in node.ns.sh(f"tc qdisc show dev {one.interface}")
    assert "rate 16Mbit burst 50000b" in node.ns.sh(f"tc qdisc show dev {ifb}")
    assert one.reaches(other.v4, within=60) and one.reaches(other.v6, within=60)
    (counted,) = json.loads(node.ns.sh(f"tc -s -j qdisc show dev {ifb}"))
    assert counted["packets"] >= 2, "what the pod sends goes through its bucket"

    for damage in (f"ip link del {ifb}", f"tc qdisc del dev {one.interface} ingress",
                   f"tc qdisc del dev {one.interface} root"):  # fmt: skip
        node.ns.sh(damage)
        daemon.resync()
        assert "rate 8Mbit" in node.ns.sh(f"tc qdisc show dev {one.interface}")
        assert ifb in node.ns.sh(f"tc filter show dev {one.interface} ingress")
        assert one.reaches(other.v4, within=60)

    daemon.add(one, "open")
    daemon.apply()
    shown = node.ns.sh("tc qdisc show")
    assert "tbf 1: dev caliother" in shown, "not ours"
    assert shown.count("tbf") == 1 and "ingress" not in shown and ifb not in shown
    assert one.reaches(other.v4, within=60)


@only_iptables
def test_a_limit_that_cannot_be_set_keeps_its_pod_down_and_no_other(
    node: Node, make_felix: Callable[..., Felix]
) -> None:
    one, other = node.pod("one"), node.pod("other")
    node.ns.veth(device_name(one.interface), "in-the-way")
    daemon = make_felix()
    ident = daemon.add(one, "open", egress=Bandwidth(8_000_000, 400_000))
    free = daemon.add(other, "open")
    assert daemon.apply()
    troubles = daemon.driver.endpoint_troubles()
    assert "bandwidth: " in troubles[ident] and troubles[free] == ""


@only_iptables
def test_the_limits_of_a_pod_go_with_it(node: Node, make_felix: Callable[..., Felix]) -> None:
    pod = node.pod("one")
    daemon = make_felix()
    daemon.add(pod, "open", egress=Bandwidth(8_000_000, 400_000))
    daemon.apply()
    assert device_name(pod.interface) in node.ns.sh("ip link")
    pod.delete()
    daemon.remove(pod)
    daemon.apply()
    assert device_name(pod.interface) not in node.ns.sh("ip link")
