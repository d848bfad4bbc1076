"""Which addresses a service of type LoadBalancer is to have."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.controllers.services import (
    ADDRESSES,
    POOLS4,
    POOLS6,
    Plan,
    ingress_of,
    is_ours,
    plan,
    says,
    usable,
    without,
)
from tortie.core.errors import ValidationError
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.service import Ingress, LoadBalancer, Service, ServiceSpec, ServiceStatus
from tortie.ipam.addresses import network
from tortie.ipam.pools import Pool

pytestmark = pytest.mark.unit

USES = ("LoadBalancer",)
FOUR = Pool("four", network("10.0.0.0/24"), 26, True, uses=USES)
SIX = Pool("six", network("fd00::/112"), 122, True, uses=USES)
MANUAL = Pool("manual", network("10.0.1.0/24"), 26, True, uses=USES, automatic=False)
POOLS = [FOUR, SIX, MANUAL]


def service(*ingress: Ingress, families: tuple[str, ...] = ("IPv4",), **spec: Any) -> Service:
    annotations = spec.pop("annotations", {})
    fields = {"type": "LoadBalancer", "ipFamilies": families} | spec
    return Service(
        metadata=ObjectMeta(name="web", namespace="shop", uid="u", annotations=annotations),
        spec=ServiceSpec(**fields),
        status=ServiceStatus(loadBalancer=LoadBalancer(ingress=ingress)),
    )


@pytest.mark.parametrize(
    ("spec", "all_services", "requested_only"),
    [
        ({}, True, False),
        ({"type": "NodePort", "loadBalancerClass": "calico"}, False, False),
        ({"loadBalancerClass": "calico"}, True, True),
        ({"loadBalancerClass": "other"}, False, False),
        ({"loadBalancerClass": "other", "loadBalancerIP": "10.0.0.1"}, False, False),
        ({"loadBalancerIP": "10.0.0.1"}, True, True),
        ({"annotations": {POOLS4: '["four"]'}}, True, True),
        ({"annotations": {ADDRESSES: "[]"}}, True, True),
        ({"annotations": {ADDRESSES: ""}}, True, False),
        ({"annotations": {POOLS6: "x"}, "loadBalancerClass": "other"}, False, False),
    ],
)
def test_which_services_are_ours(spec: dict[str, Any], all_services: bool, requested_only: bool) -> None:
    found = service(**spec)
    assert is_ours(found, "AllServices") is all_services
    assert is_ours(found, "RequestedServicesOnly") is requested_only


def asking(**annotations: str) -> dict[str, str]:
    names = {"four": POOLS4, "six": POOLS6, "addresses": ADDRESSES}
    return {names[name]: value for name, value in annotations.items()}


@pytest.mark.parametrize(
    ("given_service", "held", "expected"),
    [
        (service(), [], Plan(any4=True)),
        (service(), ["10.0.0.1"], Plan()),
        (service(families=("IPv6", "IPv4")), ["10.0.0.1"], Plan(any6=True)),
        (service(families=("IPv6",)), ["10.0.0.1"], Plan(release=("10.0.0.1",), any6=True)),
        (service(), ["10.0.1.1"], Plan(release=("10.0.1.1",), any4=True)),  # a pool for who asks
        (service(), ["10.7.0.1"], Plan()),  # of a pool that is going
        (
            service(annotations=asking(four='["manual"]')),
            ["10.0.0.1"],
            Plan(release=("10.0.0.1",), any4=True, pools4=("10.0.1.0/24",)),
        ),
        (
            service(annotations=asking(four='["10.0.1.0/24"]')),
            ["10.0.1.1"],
            Plan(pools4=("10.0.1.0/24",)),
        ),
        (
            service(annotations=asking(addresses='["10.0.0.5","fd00:0::5"]')),
            ["10.0.0.1", "fd00::5"],
            Plan(release=("10.0.0.1",), take=("10.0.0.5",)),
        ),
        (service(loadBalancerIP="10.0.0.5"), ["10.0.0.1"], Plan(release=("10.0.0.1",), take=("10.0.0.5",))),
        (
            service(loadBalancerIP="10.0.0.5", annotations=asking(addresses='["10.0.0.6"]')),
            [],
            Plan(take=("10.0.0.6",)),
        ),
    ],
)
def test_plans(given_service: Service, held: list[str], expected: Plan) -> None:
    assert plan(given_service, held, POOLS) == expected


def test_without_a_pool_everything_is_given_back() -> None:
    assert plan(service(), ["10.0.0.1"], []) == Plan(release=("10.0.0.1",))


@pytest.mark.parametrize(
    ("annotations", "reason"),
    [
        (asking(four="four"), "list of strings"),
        (asking(four='["six"]'), "isn't a IPv4 address"),
        (asking(six='["nowhere"]'), "error parsing pool"),
        (asking(six="[]"), "failed to resolve pools for IPv6"),
        (asking(addresses='["x"]'), "could not parse x as a valid IP address"),
        (asking(addresses='["10.0.0.1","10.0.0.2"]'), "Received 2 ipv4 and 0 ipv6 addresses"),
        (asking(addresses="[1]"), "list of strings"),
    ],
)
def test_a_wrong_annotation_is_named(annotations: dict[str, str], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason) as raised:
        plan(service(annotations=annotations), [], POOLS)
    assert next(iter(annotations)) in raised.value.fields[0].field


def test_only_pools_for_load_balancers() -> None:
    other = Pool("pods", network("10.2.0.0/24"), 26, True)
    broken = Pool("bad", network("10.3.0.0/24"), 26, False, uses=USES, fault="x")
    assert usable([FOUR, other, broken]) == [FOUR]


def test_what_the_status_says() -> None:
    both = ingress_of(["fd00::1", "10.0.0.2"])
    assert [one.ip for one in both] == ["10.0.0.2", "fd00::1"]
    told = service(Ingress(ip="fd00::1", ipMode="VIP"), Ingress(ip="10.0.0.2", ports=({"port": 80},)))
    assert says(told, both)
    assert not says(told, both[:1])
    theirs = Ingress(hostname="lb.example")
    assert without(service(theirs, Ingress(ip="10.0.0.2")), ["10.0.0.2"]) == (theirs,)


@given(
    st.lists(st.sampled_from(["10.0.0.1", "10.0.1.1", "fd00::1", "10.7.0.1"]), unique=True),
    st.sampled_from([(), ("IPv4",), ("IPv6",), ("IPv4", "IPv6")]),
    st.sampled_from([{}, asking(four='["manual"]'), asking(six='["six"]'), asking(addresses='["10.0.0.1"]')]),
)
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(
    held: list[str], families: tuple[str, ...], annotations: dict[str, str]
) -> None:
    wanted = service(families=families, annotations=annotations)
    first = plan(wanted, held, POOLS)
    assert set(first.release) <= set(held)
    after = [one for one in held if one not in first.release] + [*first.take]
    after += ["10.0.1.9" if first.pools4 else "10.0.0.9"] if first.any4 else []
    after += ["fd00::9"] if first.any6 else []
    second = plan(wanted, after, POOLS)
    assert (second.release, second.take, second.any4, second.any6) == ((), (), False, False)
