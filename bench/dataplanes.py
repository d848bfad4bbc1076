"""What each dataplane costs: programming many policies and set members, then one change at a time.

    sudo python bench/dataplanes.py [ENDPOINTS POLICIES MEMBERS]        (default: 100 1000 50000)

Runs itself again inside its own network namespace; nothing outside is touched. Full programming, from the
calculated state to the kernel, stands beside the lower bound, taken in the same run: the same final rules and
sets loaded by one `nft -f`, or by iptables-restore and ipset restore.
"""

import asyncio
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tortie.felix.calc.graph import State, Touched
from tortie.felix.calc.model import (
    ALLOW_ALL,
    Members,
    Policy,
    PolicyId,
    PolicyRef,
    Profile,
    Rule,
    Side,
    Tier,
    Workload,
    WorkloadId,
)
from tortie.felix.dataplane.driver import Driver, Options
from tortie.felix.dataplane.interfaces import Interfaces
from tortie.felix.dataplane.kernel import open_kernel
from tortie.felix.dataplane.routes import Ownership

_INSIDE = "TORTIE_BENCH_INSIDE"
_SETS = 500  # over which the members are spread
_PER_ENDPOINT = 20  # policies that select one endpoint
_ROUNDS = 60


def main() -> None:
    if os.environ.get(_INSIDE) != "1":
        command = ["unshare", "-n", sys.executable, *sys.argv]
        sys.exit(subprocess.run(command, env={**os.environ, _INSIDE: "1"}, check=False).returncode)
    endpoints, policies, members = [int(text) for text in sys.argv[1:4]] or (100, 1000, 50000)
    print(f"Linux {os.uname().release}, Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f}")
    print(f"{endpoints} endpoints, {policies} policies, {members} members in {_SETS} sets\n")
    run("ip", "link", "set", "lo", "up")
    for nftables in (True, False):
        state = a_state(endpoints, policies, members)
        asyncio.run(report(state, nftables))


def run(*command: str, given: str = "") -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


# --- the state ------------------------------------------------------------------------------------


def a_state(endpoints: int, policies: int, members: int) -> State:
    """Every policy selects some endpoint; every set is named by some policy."""
    state = State(profiles={"open": Profile("open", (ALLOW_ALL,), (ALLOW_ALL,))})
    numbers = iter(range(members))
    for number in range(_SETS):
        own = {address(next(numbers)) for _ in range(members // _SETS)}
        state.sets[ident(number)] = Members("net", own)
    refs = [PolicyRef(PolicyId(f"policy-{n}", "default", "NetworkPolicy"), f"s{n}") for n in range(policies)]
    for number, ref in enumerate(refs):
        state.policies[ref.id] = a_policy(ref.id, number)
    for number in range(endpoints):
        chosen = tuple(refs[(number * _PER_ENDPOINT + n) % policies] for n in range(_PER_ENDPOINT))
        name = WorkloadId("k8s", f"default/pod-{number}", "eth0")
        net = (f"10.65.{number >> 8}.{number & 255}/32",)
        tiers = (Tier("default", ingress=chosen, egress=chosen),)
        state.workloads[name] = Workload(name, f"cali{number:011x}", net, profiles=("open",), tiers=tiers)
    return state


def a_policy(name: PolicyId, number: int) -> Policy:
    side = Side(sets=(ident(number % _SETS),))
    rules = (
        Rule("allow", protocol="tcp", src=side, dst=Side(ports=((80, 80), (8000 + number, 8010 + number)))),
        Rule("allow", protocol="udp", src=side, dst=Side(ports=((53, 53),))),
        Rule("deny", src=Side(nets=("10.99.0.0/16",))),
    )
    return Policy(name, "default", inbound=rules, outbound=rules)


def ident(number: int) -> str:
    return f"s:{random.Random(number).getrandbits(128):032x}"


def address(number: int) -> str:
    return f"10.{100 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


# --- measuring ------------------------------------------------------------------------------------


async def report(state: State, nftables: bool) -> None:
    interfaces = Interfaces()
    kernel = await open_kernel(
        frozenset((4, 6)), Ownership(interfaces.name_of, ("cali",)), clock=time.monotonic,
        nftables=nftables, backend="nft",
    )  # fmt: skip
    driver = Driver(Options("bench"), kernel, interfaces, clock=time.monotonic, rand=random.random)
    print("nftables" if nftables else "iptables (nft back-end) and ipset")
    began = time.perf_counter()
    driver.start(state)
    rendered = time.perf_counter() - began
    await driver.apply()
    full = time.perf_counter() - began
    only_ours(driver)
    bound = lower_bound(nftables)
    print(f"  full programming     {full:7.2f} s   (rendering {rendered:.2f} s)")
    print(f"  lower bound          {bound:7.2f} s   ratio {full / bound:.2f}")
    print(f"  resident memory      {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:7.0f} MB")
    driver.forget()
    await driver.apply()
    began = time.perf_counter()
    driver.forget()
    await driver.apply()
    print(f"  resync, no change    {time.perf_counter() - began:7.2f} s")
    await report_changes(driver, state)
    await kernel.close()


def only_ours(driver: Driver) -> None:
    """Interfaces do not exist here, so endpoints are down; rules and sets must all stand."""
    wrong = {what: why for what, why in driver.failures().items() if "chains" in what or "sets" in what}
    if wrong:
        sys.exit(f"not programmed: {wrong}")


def lower_bound(nftables: bool) -> float:
    """Seconds to load what stands now, by the tools alone; it stands again afterwards."""
    if nftables:
        saved = run("nft", "-s", "list", "ruleset")
        run("nft", "flush", "ruleset")
        return timed(lambda: run("nft", "-f", "-", given=saved))
    sets, rules, rules6 = run("ipset", "save"), run("iptables-nft-save"), run("ip6tables-nft-save")
    run("nft", "flush", "ruleset")
    run("ipset", "destroy")
    return timed(
        lambda: (
            run("ipset", "restore", given=sets),
            run("iptables-nft-restore", given=rules),
            run("ip6tables-nft-restore", given=rules6),
        )
    )


def timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


async def report_changes(driver: Driver, state: State) -> None:
    await driver.apply()
    seconds: list[float] = []
    for number in range(_ROUNDS):
        name = ident(number % _SETS)
        state.sets[name].v4.add(f"10.250.{number >> 8}.{number & 255}")
        seconds.append(await change(driver, Touched(sets={name})))
    tell("one member more", seconds)
    seconds = []
    for number, (name, policy) in enumerate(list(state.policies.items())[:_ROUNDS]):
        rules = (
            *policy.inbound,
            Rule("allow", protocol="tcp", dst=Side(ports=((9000 + number, 9000 + number),))),
        )
        state.policies[name] = replace(policy, inbound=rules)
        seconds.append(await change(driver, Touched(policies={name})))
    tell("one rule more", seconds)
    print()


async def change(driver: Driver, touched: Touched) -> float:
    began = time.perf_counter()
    driver.update(touched)
    await driver.apply()
    return time.perf_counter() - began


def tell(what: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    middle, last = ordered[len(ordered) // 2], ordered[round(len(ordered) * 0.99) - 1]
    print(f"  {what:<20} {middle * 1000:7.0f} ms p50 {last * 1000:7.0f} ms p99")


if __name__ == "__main__":
    main()
