"""Which of a workload's endpoints a call is about, where a container has more than one interface. Pure.

Calico keeps one endpoint for a pod: a later ADD of the same network takes it over, whatever its interface
is called (reference: edge cases, row 47). A meta-plugin such as Multus adds a container to several networks
at once. An ADD of another network for a container whose first interface is there gets an endpoint and a
host-side interface of its own; the two never touch each other. Whose an interface is tells its mark.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tortie.cni.identity import Identity, marked
from tortie.cni.pods import Wishes
from tortie.datastore.types.endpoint import WorkloadEndpoint

Marks = Mapping[str, str]  # name of a host-side interface -> its mark, '' for none


def own(identity: Identity, listed: Iterable[WorkloadEndpoint]) -> list[WorkloadEndpoint]:
    """The workload's endpoints among those whose names merely start alike; the call's own first."""
    found = [one for one in listed if identity.names(one.name)]
    return sorted(found, key=lambda one: one.spec.endpoint != identity.ifname)


def needs_marks(identity: Identity, owned: Sequence[WorkloadEndpoint]) -> bool:
    """Whether only marks can tell: the container has an endpoint of another interface name."""
    return any(_of_another_interface(identity, one) for one in owned)


def placed(
    identity: Identity, owned: Sequence[WorkloadEndpoint], marks: Marks
) -> tuple[Identity, WorkloadEndpoint | None]:
    """For an ADD or CHECK: the identity, second or not, and the endpoint that is to be changed, if any."""
    second = replace(identity, second=True)
    if owned and owned[0].spec.endpoint == identity.ifname:
        return (second if _is_second(identity, owned[0]) else identity), owned[0]
    first = next((one for one in owned if not _is_second(identity, one)), None)
    if first is not None and _elsewhere(identity, first, marks):
        return second, None
    return identity, first


def ended(identity: Identity, owned: Sequence[WorkloadEndpoint], marks: Marks) -> list[WorkloadEndpoint]:
    """For a DEL: the endpoints that end with the attachment, those of newer containers among them."""
    return [
        one
        for one in owned
        if one.spec.endpoint == identity.ifname
        or not (_is_second(identity, one) or _elsewhere(identity, one, marks))
    ]


def sharing(identity: Identity, owned: Sequence[WorkloadEndpoint], marks: Marks) -> list[WorkloadEndpoint]:
    """Endpoints of the container's other interfaces on the same network.

    Their addresses are held under the same handle: nothing may be released by it while they are there.
    """
    here = (identity.network, identity.container_id)
    return [
        one
        for one in owned
        if _of_another_interface(identity, one)
        and _is_second(identity, one)
        and marked(marks.get(one.spec.interfaceName, "")) == here
    ]


def addresses(endpoints: Iterable[WorkloadEndpoint]) -> list[str]:
    """Their bare addresses."""
    return [network.partition("/")[0] for one in endpoints for network in one.spec.ipNetworks]


def without_first(wishes: Wishes) -> Wishes:
    """What a pod's annotations ask for a second interface: addresses and MAC are the first one's."""
    nothing = Wishes()
    return replace(
        wishes,
        ipv4_pools=nothing.ipv4_pools,
        ipv6_pools=nothing.ipv6_pools,
        assign=nothing.assign,
        addresses=nothing.addresses,
        addresses_without_ipam=nothing.addresses_without_ipam,
        floating=nothing.floating,
        mac=nothing.mac,
    )


def _of_another_interface(identity: Identity, one: WorkloadEndpoint) -> bool:
    return (
        bool(identity.pod)
        and one.spec.containerID == identity.container_id
        and one.spec.endpoint != identity.ifname
    )


def _is_second(identity: Identity, one: WorkloadEndpoint) -> bool:
    """Whether an endpoint of the pod was made for a second interface, which its host side's name tells."""
    named = replace(identity, ifname=one.spec.endpoint, second=True)
    return bool(identity.pod) and one.spec.interfaceName == named.host_interface


def _elsewhere(identity: Identity, one: WorkloadEndpoint, marks: Marks) -> bool:
    """Whether an endpoint is the same container's on another network, by the interface it has there."""
    network, container = marked(marks.get(one.spec.interfaceName, ""))
    return (
        _of_another_interface(identity, one)
        and container == identity.container_id
        and network != identity.network
    )
