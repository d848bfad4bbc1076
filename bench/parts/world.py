"""A cluster of a given size, as the datastore holds it: endpoints here and elsewhere, network sets, policies.

Every policy selects some endpoints of this node and names two IP sets; every endpoint of this node has twenty
policies, of which no two have the same selector, so that none share a chain.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tortie.datastore import codec
from tortie.datastore.keys import Key, ResourceKey
from tortie.datastore.selector import parse
from tortie.datastore.types.endpoint import WorkloadEndpoint, WorkloadEndpointSpec
from tortie.datastore.types.meta import ObjectMeta, Resource
from tortie.datastore.types.policy import (
    EntityRule,
    GlobalNetworkPolicy,
    GlobalNetworkPolicySpec,
    GlobalNetworkSet,
    GlobalNetworkSetSpec,
    Profile,
    ProfileSpec,
    Rule,
)
from tortie.datastore.validate import with_defaults
from tortie.felix.calc.rules import SelectorSource

NODE = "bench"
_PER_ENDPOINT = 20  # policies that select one endpoint of this node
_BAGS = 500  # small sets that rules look into
_ZONES = 4  # big sets, of a quarter of all endpoints elsewhere
_PER_SET = 100  # networks in one network set


@dataclass(frozen=True, slots=True)
class World:
    """How many of what; `members` are single addresses in network sets."""

    endpoints: int
    policies: int
    members: int = 0
    remote: int = 0

    def objects(self) -> Iterator[tuple[Key, Resource]]:
        yield _open_profile()
        yield from (self.policy(number) for number in range(self.policies))
        yield from (_network_set(number) for number in range(self.members // _PER_SET))
        yield from (self.local(number) for number in range(self.endpoints))
        yield from (remote(number) for number in range(self.remote))

    def stored(self) -> list[tuple[Key, bytes]]:
        """What a listing of the datastore gives, still as text."""
        return [(key, codec.encode(value)) for key, value in self.objects()]

    @property
    def _slots(self) -> int:
        return max(1, self.policies // _PER_ENDPOINT)

    def local(self, number: int) -> tuple[Key, Resource]:
        labels = {"slot": f"s{number % self._slots}", "role": "server"}
        address = f"10.64.{number >> 8}.{number & 255}"
        return _endpoint(NODE, number, address, interface(number), labels)

    def policy(self, number: int, port: int = 80) -> tuple[Key, Resource]:
        """`port`: one that it allows; another one makes it another policy."""
        some = EntityRule(selector=f"bag == 'b{number % _BAGS}'")
        many = EntityRule(selector=f"zone == 'z{number % _ZONES}'")
        ingress = (
            _allow("TCP", some, (port, f"{8000 + number % 1000}:{8010 + number % 1000}")),
            _allow("UDP", many, (53,)),
            Rule(action="Deny", source=EntityRule(nets=("10.99.0.0/16",))),
        )
        egress = (
            Rule(action="Allow", protocol="TCP", destination=_with_ports(some, (port, 443))),
            Rule(action="Deny", destination=EntityRule(nets=("10.99.0.0/16",))),
        )
        name = f"policy-{number}"
        selector = f"slot in {{'s{number % self._slots}', 'x{number}'}}"
        policy = GlobalNetworkPolicy(
            metadata=ObjectMeta(name=name),
            spec=GlobalNetworkPolicySpec(
                order=float(number), selector=selector, types=("Ingress", "Egress"), ingress=ingress,
                egress=egress,
            ),
        )  # fmt: skip
        return ResourceKey("GlobalNetworkPolicy", name), with_defaults(policy)


def _with_ports(entity: EntityRule, ports: tuple[int, ...]) -> EntityRule:
    return EntityRule(selector=entity.selector, ports=ports)


def _allow(protocol: str, source: EntityRule, ports: tuple[int | str, ...]) -> Rule:
    return Rule(action="Allow", protocol=protocol, source=source, destination=EntityRule(ports=ports))


def interface(number: int) -> str:
    return f"cali{number:011x}"


def remote(number: int, *, bag: int | None = None, zone: int | None = None) -> tuple[Key, Resource]:
    """A pod elsewhere; `bag` and `zone` say what sets it is in."""
    bag, zone = number if bag is None else bag, number if zone is None else zone
    labels = {"bag": f"b{bag % _BAGS}", "zone": f"z{zone % _ZONES}"}
    return _endpoint(f"node-{number % 100}", number, remote_address(number), "cali0", labels)


def remote_address(number: int) -> str:
    return f"10.65.{number >> 8}.{number & 255}"


def bag_set(bag: int) -> str:
    """The id of the set of all that is in a bag."""
    return SelectorSource(parse(f"bag == 'b{bag % _BAGS}'")).id


def zone_set(zone: int) -> str:
    return SelectorSource(parse(f"zone == 'z{zone % _ZONES}'")).id


def _endpoint(
    node: str, number: int, address: str, device: str, labels: dict[str, str]
) -> tuple[Key, Resource]:
    pod = f"pod{number}"
    labels |= {"projectcalico.org/namespace": "default", "projectcalico.org/orchestrator": "k8s"}
    name = f"{node.replace('-', '--')}-k8s-{pod}-eth0"
    value = WorkloadEndpoint(
        metadata=ObjectMeta(name=name, namespace="default", labels=labels),
        spec=WorkloadEndpointSpec(
            orchestrator="k8s", node=node, pod=pod, endpoint="eth0", ipNetworks=(f"{address}/32",),
            profiles=("kns.default",), interfaceName=device,
        ),
    )  # fmt: skip
    return ResourceKey("WorkloadEndpoint", name, "default"), value


def _network_set(number: int) -> tuple[Key, Resource]:
    nets = tuple(
        f"10.{100 + (one >> 16)}.{one >> 8 & 255}.{one & 255}"
        for one in range(number * _PER_SET, (number + 1) * _PER_SET)
    )
    name = f"set-{number}"
    metadata = ObjectMeta(name=name, labels={"bag": f"b{number % _BAGS}"})
    return ResourceKey("GlobalNetworkSet", name), GlobalNetworkSet(
        metadata=metadata, spec=GlobalNetworkSetSpec(nets=nets)
    )


def _open_profile() -> tuple[Key, Resource]:
    rule = Rule(action="Allow")
    spec = ProfileSpec(ingress=(rule,), egress=(rule,), labelsToApply={"pcns.name": "default"})
    return ResourceKey("Profile", "kns.default"), Profile(metadata=ObjectMeta(name="kns.default"), spec=spec)
