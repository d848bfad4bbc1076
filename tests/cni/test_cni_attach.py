"""ADD and DEL on a real host with real containers: what stands afterwards, and that nothing is left."""

import pytest

from tests.support.cni import Machine, calico, host_name

pytestmark = pytest.mark.kernel


def test_a_pod_gets_an_interface_and_the_result_says_so(machine: Machine) -> None:
    pod = machine.pod(labels={"app": "web"}, serviceAccountName="robot")
    result = machine.chain(calico(mtu=1440)).add(pod)
    inside = machine.inside(pod)
    (link,) = (one for one in inside.ip("addr") if one["ifname"] == "eth0")
    (address,) = (one for one in link["addr_info"] if one["family"] == "inet")
    assert result == {
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": host_name("default", "nginx")},
            {"name": "eth0", "mac": link["address"], "mtu": 1440, "sandbox": pod.netns},
        ],
        "ips": [{"interface": 1, "address": f"{address['local']}/32"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
    }
    assert address["prefixlen"] == 32 and link["mtu"] == 1440
    machine.chain().delete(pod)
    assert not machine.remains()
