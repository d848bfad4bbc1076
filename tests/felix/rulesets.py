"""Rulesets for tests: everything felix can render at once, and rulesets from a calculated state."""

from collections.abc import Iterable, Mapping

from tortie.felix.calc.model import (
    FloatingIP,
    HostEndpoint,
    Policy,
    PolicyId,
    PolicyRef,
    Profile,
    QoS,
    Rule,
    Side,
    Tier,
    Workload,
    WorkloadId,
)
from tortie.felix.rules import dispatch, endpoints, ir, names, nat, profiles, static
from tortie.felix.rules.evaluate import Ruleset
from tortie.felix.rules.iptables import Features, render_chain, render_hook
from tortie.felix.rules.marks import allocate
from tortie.felix.rules.settings import Failsafe, Settings

FULL = Settings(
    marks=allocate(0xFFFF0000, wireguard=True),
    workload_prefixes=("cali", "tap"),
    filter_allow=ir.RETURN,
    filter_deny=ir.REJECT,
    endpoint_to_host=ir.RETURN,
    failsafe_in=(Failsafe("tcp", 22), Failsafe("udp", 68, "10.0.0.0/8"), Failsafe("udp", 68, "fd00::/8")),
    failsafe_out=(Failsafe("udp", 53),),
    ipip=True,
    vxlan=frozenset((4, 6)),
    wireguard=frozenset((4, 6)),
    tunnel_devices=((4, "tunl0"), (4, "vxlan.calico"), (6, "vxlan-v6.calico")),
    wireguard_host_encryption=True,
    nat_ports="1024-2000",
    nat_address="172.16.0.1",
    nat_spares_hosts=True,
    nat_interface="eth0",
    service_loop=ir.REJECT,
    log_prefix="%t %k %n %p",
    log_rate="5/minute",
)

NETS = ("10.0.0.0/8", "10.1.0.0/16", "192.168.1.1/32", "fd00::/8", "fd01::/16", "fe80::1/128")
PORTS = (*((port, port) for port in range(1, 20)), (1000, 2000), (3000, 3001))


def every_rule(action: str) -> list[Rule]:
    side = Side(
        nets=NETS,
        sets=("s:net",),
        ports=PORTS,
        port_sets=("n:one", "n:two"),
        not_nets=NETS[:5],
        not_sets=("s:other",),
        not_ports=PORTS,
        not_port_sets=("n:three",),
    )
    plain = Side(nets=("10.0.0.0/8", "fd00::/8"), not_nets=("10.1.0.0/16", "fd01::/16"))
    return [
        Rule(action, protocol="tcp", src=side, dst=side, annotations=(("who", 'x" y\n-A INPUT'),)),  # type: ignore[arg-type]
        Rule(action, protocol="udp", not_protocol="tcp", dst=Side(service_sets=("svc:a",))),  # type: ignore[arg-type]
        Rule(action, protocol="icmp", icmp=(8, 0), not_icmp=(8, 1)),  # type: ignore[arg-type]
        Rule(action, protocol=58, icmp=(128, None), not_icmp=(1, 2)),  # type: ignore[arg-type]
        Rule(action, protocol="sctp", src=Side(ports=((1, 2),))),  # type: ignore[arg-type]
        Rule(action, not_protocol="udplite", src=plain, dst=plain),  # type: ignore[arg-type]
        Rule(action, protocol=200),  # type: ignore[arg-type]
        Rule(action),  # type: ignore[arg-type]
    ]


def policies() -> list[Policy]:
    rules = tuple(rule for action in ("log", "pass", "deny", "allow") for rule in every_rule(action))
    return [
        Policy(PolicyId(f"p{number}", "default", "NetworkPolicy"), "t", inbound=rules, outbound=rules)
        for number in range(7)
    ]


def everything(version: int) -> tuple[Ruleset, dict[str, str]]:
    """All chains of every kind, and the sets (kernel name -> type) they need."""
    tiers = (
        Tier("t", ingress=refs(), egress=refs()),
        Tier("single", True, (PolicyRef(policies()[0].id, "a"),), (PolicyRef(policies()[1].id, "b"),)),
    )
    qos = QoS(100, 5, 200, 10, 1000, 2000)
    workload = Workload(
        WorkloadId("k8s", "default/pod", "eth0"),
        "cali0123456789a",
        ("10.0.0.1/32", "fd00::1/128"),
        profiles=("kns.default",),
        tiers=tiers,
        qos=qos,
        dscp=46,
    )
    host = HostEndpoint("h", "eth0", (), ("kns.default",), tiers, tiers, tiers, tiers)
    ruleset: dict[tuple[str, str], ir.Chain | ir.Hook] = dict(static.hooks(FULL))
    add(ruleset, static.chains(version, FULL))
    for table in (ir.FILTER, ir.MANGLE, ir.RAW):
        add(ruleset, {table: endpoints.group_chains(tiers, FULL)})
        interfaces = ["eth0", "eth1", *([] if table == ir.RAW else [dispatch.ANY_INTERFACE])]
        add(ruleset, {table: dispatch.host_dispatch(table, interfaces, interfaces, FULL)})
        for policy in policies():
            add(ruleset, {table: profiles.policy_chains(policy, version, table, FULL)})
        profile = Profile("kns.default", policies()[0].inbound, policies()[0].outbound)
        add(ruleset, {table: profiles.profile_chains(profile, version, table, FULL)})
    bare = Workload(WorkloadId("k8s", "a/b", "eth0"), "cali2")
    add(ruleset, {ir.FILTER: endpoints.workload_chains(workload, FULL)})
    rate = endpoints.rate_chain(workload, FULL)
    assert rate is not None
    add(ruleset, {ir.FILTER: [rate]})
    add(ruleset, {ir.FILTER: dispatch.rate_dispatch([workload.interface])})
    add(ruleset, {ir.FILTER: endpoints.workload_chains(bare, FULL)})
    add(ruleset, {ir.FILTER: dispatch.workload_dispatch([workload.interface, "cali2", "cali01"], FULL)})
    for name in ("eth0", "eth1", dispatch.ANY_INTERFACE):
        add(ruleset, {ir.FILTER: endpoints.host_filter_chains(host, name, FULL)})
        add(ruleset, {ir.MANGLE: endpoints.host_mangle_chains(host, name, FULL)})
        add(ruleset, {ir.RAW: endpoints.host_raw_chains(host, name, FULL)})
    stray = Workload(WorkloadId("k8s", "a/c", "eth0"), "cali01", profiles=("kns.default",))
    add(ruleset, {ir.FILTER: endpoints.workload_chains(stray, FULL)})
    floating = (FloatingIP("1.2.3.4", "10.0.0.1"), FloatingIP("fd01::4", "fd00::1"))
    extra = {
        ir.NAT: [nat.outgoing_chain(version, True, FULL), *nat.floating_chains(floating, version)],
        ir.RAW: [static.rpf_skip_chain([("cali1", "10.0.0.0/8"), ("cali1", "fd00::/8")], version)],
        ir.FILTER: [static.cidr_block_chain(["10.96.0.0/12", "fd96::/108"], version, FULL)],
        ir.MANGLE: [static.egress_dscp_chain([("10.0.0.1/32", 46), ("fd00::1/128", 46)], version)],
    }
    add(ruleset, extra)
    return ruleset, sets_of(ruleset, version)


def refs() -> tuple[PolicyRef, ...]:
    return tuple(PolicyRef(policy.id, "same()") for policy in policies())


def add(ruleset: dict[tuple[str, str], ir.Chain | ir.Hook], chains: Mapping[str, Iterable[ir.Chain]]) -> None:
    for table, some in chains.items():
        for chain in some:
            ruleset[table, chain.name] = chain


def sets_of(ruleset: Ruleset, version: int) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in ruleset.values():
        rules = one.rules if isinstance(one, ir.Chain) else one.first + one.last
        for rule in rules:
            for match in rule.matches:
                if isinstance(match, ir.InSet):
                    found[names.ip_set(version, match.id)] = "hash:ip,port" if match.ports else "hash:net"
    return found


def restore_input(ruleset: Ruleset, version: int) -> str:
    """The whole ruleset as one input for iptables-restore."""
    lines: list[str] = []
    for table in ir.TABLES:
        own = {
            name: one
            for (where, name), one in ruleset.items()
            if where == table and isinstance(one, ir.Chain)
        }
        hooks = {
            name: one for (where, name), one in ruleset.items() if where == table and isinstance(one, ir.Hook)
        }
        lines += [f"*{table}", *(f":{name} - -" for name in own)]
        for name, chain in own.items():
            lines += [f"-A {name} {rule.text}" for rule in render_chain(chain, version, Features()).rules]
        for name, hook in hooks.items():
            hooked = render_hook(hook, name, version, Features())
            lines += [f"-A {name} {rule.text}" for rule in (*hooked.first, *hooked.last)]
        lines.append("COMMIT")
    return "\n".join(lines) + "\n"
