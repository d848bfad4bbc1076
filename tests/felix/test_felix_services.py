"""Services in rules: what stands behind them, whatever order their EndpointSlices come in."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.felix.objects import allow, global_policy, workload
from tortie.datastore.nativekeys import SliceKey
from tortie.datastore.syncer import Update
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.policy import EntityRule, ServiceMatch
from tortie.datastore.types.service import (
    SERVICE_LABEL,
    Conditions,
    Endpoint,
    EndpointPort,
    EndpointSlice,
)
from tortie.felix.calc.graph import Calculation, Inputs
from tortie.felix.calc.services import ServiceIndex

pytestmark = pytest.mark.unit

WEB = (EndpointPort(port=80), EndpointPort(port=53, protocol="UDP"), EndpointPort())


def behind(service: str, *addresses: str, ports: Iterable[EndpointPort] = WEB) -> EndpointSlice:
    return EndpointSlice(
        metadata=ObjectMeta(name="x", namespace="shop", labels={SERVICE_LABEL: service}),
        addressType="IPv4",
        endpoints=tuple(Endpoint(addresses=(one,), conditions=Conditions(ready=False)) for one in addresses),
        ports=tuple(ports),
    )


def told(*changes: tuple[str, EndpointSlice | None]) -> dict[str, tuple[set[str], set[str]]]:
    """Service -> addresses, addresses with ports, as last told."""
    found: dict[str, tuple[set[str], set[str]]] = {}

    def tell(service: str, nets: Iterable[str], ports: Iterable[str]) -> None:
        found[service] = set(nets), set(ports)

    index = ServiceIndex(tell)
    for name, value in changes:
        index.update(SliceKey("shop", name), value)
    return {service: sets for service, sets in found.items() if any(sets)}


def test_addresses_and_ports_whatever_is_ready() -> None:
    assert told(("a", behind("web", "10.0.0.1", "fd00::1", "db.example"))) == {
        "shop/web": (
            {"10.0.0.1", "fd00::1"},
            {"10.0.0.1,tcp:80", "10.0.0.1,udp:53", "fd00::1,tcp:80", "fd00::1,udp:53"},
        )
    }


def test_a_slice_of_old_endpoints_has_ports_of_its_own() -> None:
    one = Endpoint(addresses=("10.0.0.1",), ports=(EndpointPort(port=81),))
    value = EndpointSlice(metadata=behind("web").metadata, endpoints=(one,), ports=WEB)
    assert told(("a", value))["shop/web"][1] == {"10.0.0.1,tcp:81"}


def test_a_port_out_of_range_is_no_member() -> None:
    ports = [EndpointPort(port=number) for number in (0, -1, 65536, 2**40)]
    assert told(("a", behind("web", "10.0.0.1", ports=ports))) == {"shop/web": ({"10.0.0.1"}, set())}


SLICES = st.one_of(
    st.none(),
    st.builds(
        lambda service, addresses: behind(service, *addresses),
        st.sampled_from(["web", "db"]),
        st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1"]), max_size=3),
    ),
)


@given(st.lists(st.tuples(st.sampled_from("abc"), SLICES), max_size=12))
def test_any_history_ends_as_a_fresh_start(changes: list[tuple[str, EndpointSlice | None]]) -> None:
    assert told(*changes) == told(*dict(changes).items())


def test_rules_with_services_have_their_members() -> None:
    calc = Calculation(Inputs("node1"))
    match = EntityRule(services=ServiceMatch(name="web", namespace="shop"))
    rules = {"ingress": (allow(source=match),), "egress": (allow(destination=match),)}
    policy = global_policy("p", selector="all()", types=("Ingress", "Egress"), **rules)
    key = SliceKey("shop", "a")
    calc.update(Update("new", key, behind("web", "10.0.0.1")))
    for resource, value in (workload("w"), policy):
        calc.update(Update("new", resource, value))
    calc.flush()

    def members() -> list[set[str]]:
        return sorted((set(one.v4) for one in calc.state.sets.values()), key=len)

    assert members() == [{"10.0.0.1"}, {"10.0.0.1,tcp:80", "10.0.0.1,udp:53"}]
    calc.update(Update("updated", key, behind("web", "10.0.0.2")))
    touched = calc.flush()
    assert members() == [{"10.0.0.2"}, {"10.0.0.2,tcp:80", "10.0.0.2,udp:53"}]
    assert touched.sets == set(calc.state.sets)
    calc.update(Update("deleted", key, None))
    calc.flush()
    assert members() == [set(), set()]
