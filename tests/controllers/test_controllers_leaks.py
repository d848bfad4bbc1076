"""Which addresses are leaks, and when: the rules one by one, and what holds for every picture."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tortie.controllers.leaks import Home, Picture, id_of, judge
from tortie.datastore.types.ipam import AllocationAttribute
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.pod import Pod, PodIP, PodSpec, PodStatus
from tortie.ipam.audit import Allocation

pytestmark = pytest.mark.unit

GRACE = 900.0


def held(address: str, node: str = "n1", pod: str = "web", handle: str = "", **more: Any) -> Allocation:
    secondary = {"node": node, "namespace": "shop", "pod": pod} | more.pop("attributes", {})
    secondary = {name: value for name, value in secondary.items() if value}
    fields: dict[str, Any] = {
        "address": address,
        "block": "10.0.0.0/26",
        "handle": handle or f"net.{address}",
        "sequence_number": 7,
        "node": node,
        "borrowed": False,
        "cooling": False,
    }
    fields |= more
    attribute = AllocationAttribute(handle_id=fields["handle"], secondary=secondary)
    return Allocation(attribute=attribute, **fields)


def tunnel(address: str, node: str = "n1") -> Allocation:
    return held(address, node, pod="", attributes={"namespace": "", "type": "vxlanTunnelAddress"})


def pod(
    *addresses: str, node: str = "n1", name: str = "web", phase: str = "Running", reason: str = ""
) -> Pod:
    ips = tuple(PodIP(ip=one) for one in addresses)
    status = PodStatus(phase=phase, reason=reason, podIP=addresses[0] if addresses else "", podIPs=ips)
    meta = ObjectMeta(name="web", namespace="shop")
    return Pod(metadata=meta, spec=PodSpec(nodeName=node), status=status)


def picture(
    *allocations: Allocation, pods: tuple[Pod, ...] = (), homes: Mapping[str, Home] | None = None
) -> Picture:
    known = homes or {}
    return Picture(
        allocations=allocations,
        owners=[one.node for one in allocations],
        home=lambda node: known.get(node, Home.HERE),
        pods={(one.metadata.namespace, one.metadata.name): one for one in pods},
    )


def leaked(seen: Picture, grace: float = GRACE) -> list[str]:
    """After two looks that are a grace period apart."""
    first = judge(seen, {}, 100.0, grace)
    return [one.address for one in judge(seen, first.suspects, 100.0 + grace, grace).leaked]


@pytest.mark.parametrize(
    ("one", "pods", "expected"),
    [
        (held("10.0.0.1"), (), True),  # the pod is gone
        (held("10.0.0.1"), (pod("10.0.0.1"),), False),
        (held("fd00::1"), (pod("10.0.0.1", "fd00:0::1"),), False),
        (held("10.0.0.1"), (pod("10.0.0.2"),), True),  # it has another address now
        (held("10.0.0.1"), (pod("10.0.0.1", node="n2"),), True),  # another pod of its name
        (held("10.0.0.1"), (pod("10.0.0.1", node=""),), False),
        (held("10.0.0.1"), (pod(),), False),  # kubelet has not told
        (held("10.0.0.1"), (pod("10.0.0.1", phase="Failed", reason="Evicted"),), True),
        (held("10.0.0.1"), (pod("10.0.0.1", phase="Failed"),), False),
        (held("10.0.0.1", pod=""), (), False),  # nothing says whose it is
        (held("10.0.0.1", attributes={"namespace": ""}), (), False),
        (held("10.0.0.1", attributes={"vmi-name": "vm"}), (), False),  # it outlives its pods
        (held("10.0.0.1", cooling=True), (), False),
        (held("10.0.0.1", handle="windows-reserved-ipam-handle"), (), False),
        (held("10.0.0.1", handle="warm-pool-n1", pod=""), (), False),  # its node exists
        (tunnel("10.0.0.1"), (), False),
        (held("10.0.0.1", node=""), (), False),  # a service's, or of a version that said no node
    ],
)
def test_an_address_of_a_node_that_exists(one: Allocation, pods: tuple[Pod, ...], expected: bool) -> None:
    assert leaked(picture(one, pods=pods)) == (["10.0.0.1"] if expected else [])


def test_several_networks_of_a_pod_are_not_judged() -> None:
    several = structs.replace(
        pod("10.0.0.9"),
        metadata=ObjectMeta(
            name="web", namespace="shop", annotations={"k8s.v1.cni.cncf.io/network-status": "[]"}
        ),
    )
    assert leaked(picture(held("10.0.0.1"), pods=(several,))) == []


def test_the_grace_period() -> None:
    seen = picture(held("10.0.0.1"))
    first = judge(seen, {}, 100.0, GRACE)
    assert (first.leaked, first.next_at) == ([], 1000.0)
    second = judge(seen, first.suspects, 999.9, GRACE)
    assert (second.leaked, second.suspects, second.next_at) == ([], first.suspects, 1000.0)
    third = judge(seen, second.suspects, 1000.0, GRACE)
    assert [one.address for one in third.leaked] == ["10.0.0.1"]
    assert judge(seen, {}, 1e9, 0.0).leaked == []  # 0: candidates are only counted
    assert judge(seen, {}, 1e9, 0.0).suspects


def test_a_suspect_that_is_used_again_begins_anew() -> None:
    one = held("10.0.0.1")
    first = judge(picture(one), {}, 100.0, GRACE)
    used = judge(picture(one, pods=(pod("10.0.0.1"),)), first.suspects, 900.0, GRACE)
    assert used.suspects == {}
    assert judge(picture(one), used.suspects, 1000.0, GRACE).leaked == []


def test_an_address_given_anew_is_another_one() -> None:
    first = judge(picture(held("10.0.0.1")), {}, 100.0, GRACE)
    anew = held("10.0.0.1", sequence_number=8)
    assert judge(picture(anew), first.suspects, 5000.0, GRACE).leaked == []


def test_a_handle_is_given_up_as_a_whole() -> None:
    both = held("10.0.0.1", handle="h"), held("fd00::1", handle="h")
    assert leaked(picture(*both)) == ["10.0.0.1", "fd00::1"]
    assert leaked(picture(*both, pods=(pod("fd00::1"),))) == []


def test_of_a_node_that_is_gone_everything_goes_at_once() -> None:
    homes = {"n1": Home.GONE}
    verdict = judge(picture(held("10.0.0.1"), tunnel("10.0.0.2"), homes=homes), {}, 0.0, GRACE)
    assert [one.address for one in verdict.leaked] == ["10.0.0.1", "10.0.0.2"]
    assert verdict.gone == ["n1"]


def test_a_node_that_only_has_blocks_is_given_up() -> None:
    seen = Picture(allocations=[], owners=["n1", "n2"], home=lambda n: Home.GONE, pods={})
    assert judge(seen, {}, 0.0, 0.0).gone == ["n1", "n2"]


def test_a_pod_that_is_still_there_keeps_its_node() -> None:
    both = held("10.0.0.1"), held("10.0.0.3", pod="lost")
    seen = picture(*both, tunnel("10.0.0.2"), pods=(pod("10.0.0.1"),), homes={"n1": Home.GONE})
    verdict = judge(seen, {}, 0.0, GRACE)
    assert ([one.address for one in verdict.leaked], verdict.gone) == (["10.0.0.3"], [])


def test_nothing_is_known_of_what_is_no_kubernetes_node() -> None:
    verdict = judge(picture(held("10.0.0.1"), homes={"n1": Home.FOREIGN}), {}, 0.0, 1.0)
    assert (verdict.leaked, verdict.gone, verdict.suspects) == ([], [], {})


allocations = st.lists(
    st.builds(
        held,
        st.sampled_from([f"10.0.0.{n}" for n in range(6)]),
        node=st.sampled_from(["n1", "n2", "n3"]),
        pod=st.sampled_from(["web", "lost", ""]),
        handle=st.sampled_from(["", "a", "b"]),
    ),
    unique_by=lambda one: one.address,
)
homes = st.fixed_dictionaries(dict.fromkeys(["n1", "n2", "n3"], st.sampled_from(list(Home))))


@given(allocations, homes, st.booleans(), st.floats(0, 100))
def test_what_holds_for_every_picture(
    found: list[Allocation], known: dict[str, Home], running: bool, grace: float
) -> None:
    pods = (pod("10.0.0.1", "10.0.0.2", node=""),) if running else ()
    seen = picture(*found, pods=pods, homes=known)
    first = judge(seen, {}, 0.0, grace)
    again = judge(seen, first.suspects, grace, grace)
    gone = {id_of(one) for one in again.leaked}
    for one in again.leaked:
        assert known[one.node] is not Home.FOREIGN
        assert not (running and one.known("pod") == "web" and one.address in ("10.0.0.1", "10.0.0.2"))
        assert all(id_of(other) in gone for other in found if other.handle == one.handle)
    if grace > 0:
        assert all(known[one.node] is Home.GONE for one in first.leaked)
    assert {id_of(one) for one in first.leaked} <= gone
    assert all(known[node] is Home.GONE for node in again.gone)
