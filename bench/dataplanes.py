"""What full programming costs in each dataplane, from the datastore's snapshot to the kernel, and a resync.

    sudo python bench/dataplanes.py [ENDPOINTS POLICIES MEMBERS]...   (default: 100 100 5000, 100 1000 50000)

Runs itself again inside its own network namespace; nothing outside is touched. Beside it stands the lower
bound, taken in the same run: the same final rules and sets loaded by one `nft -f`, or by iptables-restore and
ipset restore, which know nothing and check nothing. Each is done three times; the best counts. The snapshot
is text, as etcd gives it; CPU is that of felix, and behind the plus sign that of the tools it runs.
"""

import asyncio
import gc
import multiprocessing
import os
import random
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.parts import isolated
from bench.parts.world import NODE, World
from tortie.datastore import codec, validate
from tortie.datastore.keys import Key
from tortie.datastore.kinds import KINDS
from tortie.datastore.syncer import Update
from tortie.felix import garbage
from tortie.felix.calc.graph import Calculation, Inputs
from tortie.felix.dataplane.driver import Driver
from tortie.felix.dataplane.interfaces import Interfaces
from tortie.felix.dataplane.kernel import open_kernel
from tortie.felix.dataplane.options import Options
from tortie.felix.dataplane.routes import Ownership

_SIZES = (100, 100, 5_000, 100, 1_000, 50_000)
_ROUNDS = 3


def main() -> None:
    isolated.ensure_network()
    print(f"Linux {os.uname().release}, Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f}\n")
    sizes = [int(text) for text in sys.argv[1:]] or _SIZES
    worlds = [World(*three) for three in zip(*[iter(sizes)] * 3, strict=True)]
    for nftables in (True, False):
        print("nftables" if nftables else "iptables (nft back-end) and ipset")
        for world in worlds:
            report(world, nftables)


def run(*command: str, given: str = "") -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


# --- felix ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds: on the clock, of felix' own CPU, and of that of the tools it ran."""

    wall: float
    own: float
    tools: float

    def __str__(self) -> str:
        return f"{self.wall:7.3f} s   (CPU {self.own:.3f} + {self.tools:.3f} s)"


class Stopwatch:
    def __init__(self) -> None:
        self._began = self._now()

    def read(self) -> Cost:
        return Cost(*(now - before for now, before in zip(self._now(), self._began, strict=True)))

    def _now(self) -> tuple[float, float, float]:
        tools = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.perf_counter(), time.process_time(), tools.ru_utime + tools.ru_stime


@dataclass(frozen=True, slots=True)
class Measured:
    """`parts`: what it was spent on -> seconds; `resident`: MiB, altogether and for this.

    `reading`: a resync in which all is read and nothing is found to do; `resync`: one more, after which the
    kernel says by itself that no rule changed since.
    """

    full: Cost
    parts: dict[str, float]
    reading: Cost
    resync: Cost
    resident: tuple[float, float]


def in_process_of_its_own(world: World, nftables: bool) -> Measured:
    """So that each time starts with the same memory."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(measure, (world, nftables))


def measure(world: World, nftables: bool) -> Measured:
    return asyncio.run(_measure(world, nftables))


async def _measure(world: World, nftables: bool) -> Measured:
    stored = world.stored()
    validate.check_stored(None)
    interfaces = Interfaces()
    ownership = Ownership(interfaces.name_of, ("cali",))
    kernel = await open_kernel(
        frozenset((4, 6)), ownership, clock=time.monotonic, nftables=nftables, backend="nft"
    )
    driver = Driver(Options(NODE), kernel, interfaces, clock=time.monotonic, rand=random.random)
    gc.collect()
    gc.freeze()  # what the bench itself holds is no concern of felix'
    garbage.start()
    before, parts = resident(), {}
    watch = Stopwatch()
    updates = list(map(_decoded, stored))
    parts["reading"] = watch.read().wall
    calculation = Calculation(Inputs(NODE))
    for update in updates:
        calculation.update(update)
    calculation.flush()
    parts["calculation"] = watch.read().wall - sum(parts.values())
    driver.start(calculation.state)
    parts["rendering"] = watch.read().wall - sum(parts.values())
    await driver.apply()
    full = watch.read()
    parts["kernel"] = full.wall - sum(parts.values())
    only_ours(driver)
    after = resident()
    garbage.settled()
    reading, resync = await a_resync(driver), await a_resync(driver)
    await kernel.close()
    return Measured(full, parts, reading, resync, (after, after - before))


def _decoded(one: tuple[Key, bytes]) -> Update:
    key, text = one
    value = codec.decode(KINDS[key.kind].type, text)
    validate.check_stored(value)
    return Update("new", key, value, "1")


async def a_resync(driver: Driver) -> Cost:
    driver.forget()
    watch = Stopwatch()
    await driver.apply()
    return watch.read()


def only_ours(driver: Driver) -> None:
    """Interfaces do not exist here, so endpoints are down; rules and sets must all stand."""
    wrong = {what: why for what, why in driver.failures().items() if "chains" in what or "sets" in what}
    if wrong:
        sys.exit(f"not programmed: {wrong}")


def resident() -> float:
    """MiB."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) / 1024


# --- beside it --------------------------------------------------------------------------------------


def wipe(nftables: bool) -> None:
    run("nft", "flush", "ruleset")
    if not nftables:
        run("ipset", "destroy")


def lower_bound(nftables: bool) -> Cost:
    """To load what stands now, by the tools alone; nothing stands afterwards."""
    if nftables:
        loads = {("nft", "-f", "-"): run("nft", "-s", "list", "ruleset")}
    else:
        loads = {
            ("ipset", "restore"): run("ipset", "save"),
            ("iptables-nft-restore",): run("iptables-nft-save"),
            ("ip6tables-nft-restore",): run("ip6tables-nft-save"),
        }
    wipe(nftables)
    watch = Stopwatch()
    for command, saved in loads.items():
        run(*command, given=saved)
    took = watch.read()
    wipe(nftables)
    return took


def fastest(costs: Iterable[Cost]) -> Cost:
    return min(costs, key=lambda one: one.wall)


def report(world: World, nftables: bool) -> None:
    found, bounds = [], []
    for _ in range(_ROUNDS):
        found.append(in_process_of_its_own(world, nftables))
        bounds.append(lower_bound(nftables))
    best = min(found, key=lambda one: one.full.wall)
    bound = fastest(bounds)
    reading, resync = fastest(one.reading for one in found), fastest(one.resync for one in found)
    parts = ", ".join(f"{what} {seconds:.2f}" for what, seconds in best.parts.items())
    print(f"  {world.endpoints} endpoints, {world.policies:,} policies, {world.members:,} set members")
    print(f"    full programming {best.full}: {parts}")
    print(f"    lower bound      {bound}   ratio {best.full.wall / bound.wall:.2f}")
    print(f"    resync, all read {reading}")
    print(f"    resync, unchanged{resync}")
    print(f"    resident memory  {best.resident[0]:7.0f} MiB, of which for this {best.resident[1]:.0f}\n")


if __name__ == "__main__":
    main()
