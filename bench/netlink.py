"""What the kernel edge costs: routes per second, and the interface set-up of one pod.

    sudo python bench/netlink.py [routes]

Runs itself again inside its own network namespace; nothing outside is touched. Each figure stands
beside that of `ip -batch` and of pyroute2, taken in the same run on the same machine.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.parts import isolated
from tortie.core.reconcile import Reconciler
from tortie.linux import addresses, links, netns, routes, sysctl
from tortie.linux.links import VethEnd
from tortie.linux.netlink import NetlinkSocket
from tortie.linux.route_target import RouteTarget
from tortie.linux.routes import Route, replace_message

_ROUTES = 20_000
_PYROUTE2_ROUTES = 2_000  # one at a time: more would only take longer
_PODS = 60
_MAC = "ee:ee:ee:ee:ee:ee"


def main() -> None:
    isolated.ensure_network()
    count = int(sys.argv[1]) if len(sys.argv) > 1 else _ROUTES
    with NetlinkSocket() as netlink:
        netlink.execute(links.create_veth(VethEnd("a"), VethEnd("b")))
        netlink.execute(links.change("a", up=True), links.change("b", up=True))
        link = links.get(netlink, "a")
        assert link is not None
        print(f"Linux {os.uname().release}, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs\n")
        for family, wanted in (("IPv4", ipv4(link.ifindex, count)), ("IPv6", ipv6(link.ifindex, count))):
            report_routes(family, netlink, wanted)
        report_pods(netlink)


# --- routes -------------------------------------------------------------------------------------


def ipv4(ifindex: int, count: int) -> list[Route]:
    return [
        Route(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}/32", ifindex=ifindex, scope=253, protocol=80)
        for n in range(count)
    ]


def ipv6(ifindex: int, count: int) -> list[Route]:
    return [Route(f"fd00::{n:x}/128", ifindex=ifindex, protocol=80, metric=1024) for n in range(1, count + 1)]


def report_routes(family: str, netlink: NetlinkSocket, wanted: list[Route]) -> None:
    print(f"{family}, {len(wanted)} routes          add/s     list/s   delete/s   (list: ours also compares)")
    ours = through_target(netlink, wanted)
    show("RouteTarget", ours, ours)
    show("ip -batch", through_ip(wanted), ours)
    show("pyroute2", through_pyroute2(wanted[:_PYROUTE2_ROUTES]), ours)
    print()


def show(name: str, rates: tuple[float, float, float], ours: tuple[float, float, float]) -> None:
    figures = "".join(f"{rate:11,.0f}" for rate in rates)
    ratios = "  ".join(f"{our / rate:5.2f}" for our, rate in zip(ours, rates, strict=True))
    print(f"  {name:<18}{figures}   RouteTarget is ×{ratios}")


def rate(count: int, work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def through_target(netlink: NetlinkSocket, wanted: list[Route]) -> tuple[float, float, float]:
    """The whole way of felix and bgp: difference, encoding, kernel, results, status of each route."""
    reconciler = Reconciler("routes", RouteTarget(netlink, lambda route: route.protocol == 80))

    def sync(routes_wanted: list[Route]) -> None:
        reconciler.want({route.key: route for route in routes_wanted})
        assert asyncio.run(reconciler.sync()).ok

    sync([])
    added = rate(len(wanted), lambda: sync(wanted))
    reconciler.forget()
    listed = rate(len(wanted), lambda: sync(wanted))
    return added, listed, rate(len(wanted), lambda: sync([]))


def through_ip(wanted: list[Route]) -> tuple[float, float, float]:
    family = "-6" if ":" in wanted[0].dst else "-4"

    def batch(verb: str) -> None:
        lines = "".join(f"route {verb} {route.dst} dev a proto 80\n" for route in wanted)
        subprocess.run(["ip", family, "-batch", "-"], input=lines.encode(), check=True)

    def listing() -> None:
        subprocess.run(["ip", family, "route", "show", "proto", "80"], check=True, stdout=subprocess.DEVNULL)

    added = rate(len(wanted), lambda: batch("replace"))
    listed = rate(len(wanted), listing)
    return added, listed, rate(len(wanted), lambda: batch("del"))


def through_pyroute2(wanted: list[Route]) -> tuple[float, float, float]:
    from pyroute2 import IPRoute  # measured elsewhere: 0.1 s and 24 MB

    with IPRoute() as ipr:

        def each(verb: str) -> None:
            for route in wanted:
                ipr.route(verb, dst=route.dst, oif=route.ifindex, proto=80, scope=route.scope)

        family = wanted[0].family
        added = rate(len(wanted), lambda: each("replace"))
        listed = rate(len(wanted), lambda: list(ipr.get_routes(family=family, proto=80)))
        return added, listed, rate(len(wanted), lambda: each("del"))


# --- one pod ------------------------------------------------------------------------------------


def report_pods(netlink: NetlinkSocket) -> None:
    print(f"one pod: veth, sysctls, addresses, routes on both sides; {_PODS} pods       p50 ms   p99 ms")
    ours = timed(lambda pod, n: pod_by_tortie(netlink, pod, n))
    show_pods("tortie.linux", ours, ours)
    show_pods("ip -batch, twice", timed(pod_by_ip), ours)
    show_pods("pyroute2", pods_by_pyroute2(), ours)


def show_pods(name: str, seconds: list[float], ours: list[float]) -> None:
    def quantiles(values: list[float]) -> tuple[float, float]:
        return statistics.median(values) * 1e3, sorted(values)[int(len(values) * 0.99)] * 1e3

    middle, worst = quantiles(seconds)
    print(f"  {name:<62}{middle:11.2f}{worst:9.2f}   ×{middle / quantiles(ours)[0]:.2f} of ours")


def timed(work: Callable[[int, int], None]) -> list[float]:
    """Seconds of each pod's set-up; its namespace exists before, as under a container runtime."""
    seconds: list[float] = []
    for n in range(_PODS):
        pod = netns.create()
        start = time.perf_counter()
        work(pod, n)
        seconds.append(time.perf_counter() - start)
        os.close(pod)  # takes the pair with it
    return seconds


def host_sysctls(name: str) -> dict[str, str | int]:
    conf, conf6 = f"net/ipv4/conf/{name}", f"net/ipv6/conf/{name}"
    return {
        f"{conf}/route_localnet": 1, f"{conf}/proxy_arp": 1, f"{conf}/forwarding": 1,
        f"net/ipv4/neigh/{name}/proxy_delay": 0,
        f"{conf6}/accept_dad": 0, f"{conf6}/accept_ra": 0, f"{conf6}/proxy_ndp": 1, f"{conf6}/forwarding": 1,
    }  # fmt: skip


_POD_SYSCTLS: dict[str, str | int] = {
    "net/ipv4/ip_forward": 0,
    "net/ipv6/conf/all/forwarding": 0,
    "net/ipv6/conf/eth0/accept_dad": 0,
}


def pod_by_tortie(netlink: NetlinkSocket, pod: int, n: int) -> None:
    """All of ipam-cni's order: the host's end first, then the pod's side, then the host's route."""
    name, address, address6 = f"cali{n}", f"10.200.{n >> 8}.{n & 255}/32", f"fd20::{n + 1:x}/128"
    host = netns.current()
    assert links.get(netlink, name) is None

    def inside() -> None:
        with NetlinkSocket() as inner:
            pair = links.create_veth(VethEnd("eth0"), VethEnd(name, host, mac=_MAC), mtu=1440)
            inner.execute(pair)
            eth0 = links.get(inner, "eth0")
            assert eth0 is not None and not sysctl.apply(_POD_SYSCTLS)
            netlink.execute(links.change(name, up=True))
            inner.execute(
                links.change(eth0.ifindex, up=True),
                replace_message(Route("169.254.1.1/32", ifindex=eth0.ifindex, scope=routes.SCOPE_LINK)),
                replace_message(Route("0.0.0.0/0", ifindex=eth0.ifindex, gateway="169.254.1.1")),
                addresses.add(eth0.ifindex, address),
                addresses.add(eth0.ifindex, address6, nodad=True),
                replace_message(Route("::/0", ifindex=eth0.ifindex, gateway="fe80::ecee:eeff:feee:eeee")),
            )

    netns.call_in(pod, inside)
    assert not sysctl.apply(host_sysctls(name))
    cali = links.get(netlink, name)
    assert cali is not None
    netlink.execute(
        replace_message(Route(address, ifindex=cali.ifindex, scope=routes.SCOPE_LINK)),
        replace_message(Route(address6, ifindex=cali.ifindex)),
    )
    os.close(host)


def pod_by_ip(pod: int, n: int) -> None:
    name, address, address6 = f"cali{n}", f"10.200.{n >> 8}.{n & 255}/32", f"fd20::{n + 1:x}/128"
    inner = f"""link add eth0 mtu 1440 type veth peer name {name} mtu 1440 address {_MAC} netns {os.getpid()}
link set eth0 up
route replace 169.254.1.1/32 dev eth0 scope link
route replace default via 169.254.1.1 dev eth0
addr add {address} dev eth0
addr add {address6} dev eth0 nodad
route replace ::/0 via fe80::ecee:eeff:feee:eeee dev eth0
"""
    outer = f"""link set {name} up
route replace {address} dev {name} scope link
route replace {address6} dev {name}
"""
    batch = ["ip", "-batch", "-"]
    netns.call_in(pod, subprocess.run, batch, input=inner.encode(), check=True)
    netns.call_in(pod, sysctl.apply, _POD_SYSCTLS)
    sysctl.apply(host_sysctls(name))
    subprocess.run(batch, input=outer.encode(), check=True)


def pods_by_pyroute2() -> list[float]:
    from pyroute2 import IPRoute

    def inside(host: int, name: str, address: str, address6: str) -> None:
        with IPRoute() as inner:
            peer = {"ifname": name, "net_ns_fd": host, "address": _MAC, "mtu": 1440}
            inner.link("add", ifname="eth0", kind="veth", mtu=1440, peer=peer)
            eth0 = inner.link_lookup(ifname="eth0")[0]
            sysctl.apply(_POD_SYSCTLS)
            inner.link("set", index=eth0, state="up")
            inner.route("replace", dst="169.254.1.1/32", oif=eth0, scope=253)
            inner.route("replace", dst="0.0.0.0/0", gateway="169.254.1.1", oif=eth0)
            inner.addr("add", index=eth0, address=address, prefixlen=32)
            inner.addr("add", index=eth0, address=address6, prefixlen=128)
            inner.route("replace", dst="::/0", gateway="fe80::ecee:eeff:feee:eeee", oif=eth0)

    with IPRoute() as outer:

        def pod(fd: int, n: int) -> None:
            name, address, address6 = f"cali{n}", f"10.200.{n >> 8}.{n & 255}", f"fd20::{n + 1:x}"
            assert not outer.link_lookup(ifname=name)
            host = netns.current()
            netns.call_in(fd, inside, host, name, address, address6)
            os.close(host)
            sysctl.apply(host_sysctls(name))
            cali = outer.link_lookup(ifname=name)[0]
            outer.link("set", index=cali, state="up")
            outer.route("replace", dst=f"{address}/32", oif=cali, scope=253)
            outer.route("replace", dst=f"{address6}/128", oif=cali)

        return timed(pod)


if __name__ == "__main__":
    main()
