"""What felix costs: programming many endpoints, one more endpoint, a resync that finds nothing, idling.

    sudo python bench/felix.py [ENDPOINTS...]        (default: 100 1000)

Runs itself again inside its own network namespace; nothing outside is touched. Full programming stands
beside the lower bound, taken in the same run: the same final state loaded by iptables-restore, ipset
restore and ip -batch, which know nothing and check nothing.
"""

import asyncio
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.parts import isolated
from bench.parts.writer import Writer
from tortie.datastore.keys import Key, ResourceKey
from tortie.datastore.types.endpoint import WorkloadEndpoint, WorkloadEndpointSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.policy import Profile as V3Profile
from tortie.datastore.types.policy import ProfileSpec
from tortie.datastore.types.policy import Rule as V3Rule
from tortie.felix.calc.graph import State, Touched
from tortie.felix.calc.model import ALLOW_ALL, Pool, Profile, Workload, WorkloadId
from tortie.felix.dataplane.driver import Driver
from tortie.felix.dataplane.interfaces import Interfaces
from tortie.felix.dataplane.kernel import open_kernel
from tortie.felix.dataplane.options import Options
from tortie.felix.dataplane.routes import Ownership
from tortie.felix.watch import InterfaceWatch
from tortie.lab.etcd import Etcd
from tortie.linux import links
from tortie.linux.links import VethEnd
from tortie.linux.netlink import NetlinkSocket

_ROUNDS = 50  # endpoints added one by one
_LOADED = 100  # endpoints that stand meanwhile
_SETTLE = 30.0  # seconds after the last change: until rules are no longer looked at again for having changed
_IDLE = 60.0  # seconds


def main() -> None:
    isolated.ensure_network()
    counts = [int(text) for text in sys.argv[1:]] or [100, 1000]
    print(f"Linux {os.uname().release}, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs\n")
    make_interfaces(max(*counts, _LOADED + _ROUNDS))
    for count in counts:
        asyncio.run(report_full(count))
        wipe()
    asyncio.run(report_one_more())
    wipe()
    report_process()


def run(*command: str, given: str = "") -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def make_interfaces(count: int) -> None:
    with NetlinkSocket() as netlink:
        for number in range(count):
            netlink.execute(
                links.create_veth(VethEnd(name(number)), VethEnd(f"far{number}")),
                links.change(name(number), up=True),
                links.change(f"far{number}", up=True),
            )
    time.sleep(3)  # until IPv6 has found its link-local addresses free


def name(number: int) -> str:
    return f"cali{random.Random(number).getrandbits(44):011x}"


def address(number: int) -> tuple[str, str]:
    return f"10.65.{number >> 8}.{number & 255}", f"fd65::{number + 1:x}"


# --- the driver, without a datastore ----------------------------------------------------------------


class Felix:
    """A driver with a state that grows, as after the calculation."""

    def __init__(self) -> None:
        self.state = State(
            profiles={"kns.default": Profile("kns.default", (ALLOW_ALL,), (ALLOW_ALL,))},
            pools={"10.65.0.0/16": Pool("10.65.0.0/16", True), "fd65::/64": Pool("fd65::/64")},
        )

    async def open(self) -> None:
        interfaces = Interfaces()
        versions = frozenset((4, 6))
        self.kernel = await open_kernel(
            versions, Ownership(interfaces.name_of, ("cali",)), clock=time.monotonic, backend="nft"
        )
        self.driver = Driver(
            Options("bench"), self.kernel, interfaces, clock=time.monotonic, rand=random.random
        )
        watch = InterfaceWatch(
            interfaces, self.kernel.netlink, interval=0, noticed=lambda: None,
            link_gone=self.driver.interface_gone, route_seen=self.driver.route_seen, lost=self.driver.forget,
        )  # fmt: skip
        watch.reread()
        interfaces.settle(time.monotonic() + 1)

    def add(self, number: int) -> WorkloadId:
        ident = WorkloadId("k8s", f"default/pod-{number}", "eth0")
        v4, v6 = address(number)
        nets = (f"{v4}/32", f"{v6}/128")
        self.state.workloads[ident] = Workload(ident, name(number), nets, profiles=("kns.default",))
        return ident

    async def close(self) -> None:
        await self.kernel.close()


async def report_full(count: int) -> None:
    felix = Felix()
    await felix.open()
    for number in range(count):
        felix.add(number)
    began, cpu = time.monotonic(), time.process_time()
    felix.driver.start(felix.state)
    rendered = time.monotonic() - began
    good = await felix.driver.apply()
    took, busy = time.monotonic() - began, time.process_time() - cpu
    if not good:
        sys.exit(f"not applied: {felix.driver.failures()}")
    resync = await noop(felix)
    bound, parts = lower_bound()
    print(f"full programming of {count} endpoints, both families, {parts['rules']} rules")
    print(f"    felix                    {ms(took)}   (rendering {ms(rendered)}, own CPU {ms(busy)})")
    shares = ", ".join(f"{what} {ms(spent).strip()}" for what, spent in parts.items() if what != "rules")
    print(f"    restore + ip -batch      {ms(bound)}   ({shares})")
    print(f"    ratio                    {took / bound:8.2f}")
    print(f"    resync that finds nothing{ms(resync[0])}   (own CPU {ms(resync[1])}, every 90-180 s)\n")
    await felix.close()


def ms(seconds: float) -> str:
    return f"{seconds * 1000:8.1f} ms"


async def noop(felix: Felix) -> tuple[float, float]:
    """Everything read again and compared."""
    began, cpu = time.monotonic(), time.process_time()
    felix.driver.forget()
    await felix.driver.apply()
    return time.monotonic() - began, time.process_time() - cpu


def lower_bound() -> tuple[float, dict[str, Any]]:
    """Load what stands now once more, from nothing."""
    rules = {4: run("iptables-nft-save"), 6: run("ip6tables-nft-save")}
    sets = run("ipset", "save")
    routes = [f"route replace {line}" for line in cali(run("ip", "route"))]
    routes6 = [f"route replace {line.split(' pref ')[0]}" for line in cali(run("ip", "-6", "route"))]
    sysctls = {path: path.read_text() for path in watched_sysctls()}
    wipe()
    parts: dict[str, Any] = {}
    parts["ipset"] = timed(lambda: run("ipset", "restore", given=sets))
    parts["iptables"] = timed(lambda: run("iptables-nft-restore", given=rules[4]))
    parts["ip6tables"] = timed(lambda: run("ip6tables-nft-restore", given=rules[6]))
    parts["routes"] = timed(lambda: batch(routes, routes6))
    parts["sysctls"] = timed(lambda: [path.write_text(text) for path, text in sysctls.items()])
    total = sum(parts.values())
    parts["rules"] = sum(text.count("\n-A ") for text in rules.values())
    return total, parts


def cali(text: str) -> list[str]:
    return [line for line in text.splitlines() if "dev cali" in line and "fe80" not in line]


def watched_sysctls() -> list[Path]:
    """Those felix writes, of interfaces that have a route."""
    found = []
    for line in cali(run("ip", "route")):
        match = re.search(r"dev (\S+)", line)
        assert match
        for key in ("ipv4/conf/{}/route_localnet", "ipv4/neigh/{}/proxy_delay", "ipv4/conf/{}/proxy_arp",
                    "ipv4/conf/{}/forwarding", "ipv4/conf/{}/rp_filter", "ipv6/conf/{}/accept_ra",
                    "ipv6/conf/{}/proxy_ndp", "ipv6/conf/{}/forwarding"):  # fmt: skip
            found.append(Path("/proc/sys/net") / key.format(match[1]))
    return found


def timed(function: Callable[[], object]) -> float:
    began = time.monotonic()
    function()
    return time.monotonic() - began


def wipe() -> None:
    run("nft", "flush", "ruleset")
    run("ipset", "destroy")
    batch(
        [f"route del {line}" for line in cali(run("ip", "route"))],
        [f"route del {line.split(' pref ')[0]}" for line in cali(run("ip", "-6", "route"))],
    )


def batch(lines4: list[str], lines6: list[str]) -> None:
    run("ip", "-batch", "-", given="\n".join(lines4))
    run("ip", "-6", "-batch", "-", given="\n".join(lines6))


async def report_one_more() -> None:
    felix = Felix()
    await felix.open()
    for number in range(_LOADED):
        felix.add(number)
    felix.driver.start(felix.state)
    await felix.driver.apply()
    took = []
    for number in range(_LOADED, _LOADED + _ROUNDS):
        began = time.monotonic()
        touched = Touched({felix.add(number)})
        felix.driver.update(touched)
        await felix.driver.apply()
        took.append(time.monotonic() - began)
    print(f"one more endpoint beside {_LOADED}: calculated -> everything of it in the kernel")
    print(f"    p50 {ms(statistics.median(took))}   p99 {ms(quantile(took))}\n")
    await felix.close()


def quantile(values: list[float], part: float = 0.99) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


# --- the process, with a datastore --------------------------------------------------------------------


def report_process() -> None:
    root = str(Path(__file__).resolve().parent.parent)
    code = f"import sys; sys.path.insert(0, {root!r}); import tortie.felix.daemon"
    imports = [timed(lambda: run(sys.executable, "-c", code)) for _ in range(5)]
    bare = [timed(lambda: run(sys.executable, "-c", "pass")) for _ in range(5)]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        etcd = Etcd(Path(folder))
        etcd.start()
        try:
            writer = Writer(etcd)
            writer.put(profile(), *(endpoint(number) for number in range(_LOADED)))
            process = start(root, etcd, Path(folder))
            try:
                measure(process, writer, Path(folder), min(imports) - min(bare))
            finally:
                process.kill()
                process.wait()
                writer.close()
        finally:
            etcd.stop()


def start(root: str, etcd: Etcd, folder: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": root,
        "DATASTORE_TYPE": "etcdv3",
        "ETCD_ENDPOINTS": etcd.endpoint,
        "FELIX_FELIXHOSTNAME": "bench",
        "FELIX_IPTABLESBACKEND": "nft",
        "FELIX_ENDPOINTSTATUSPATHPREFIX": str(folder),
        "FELIX_REPORTINGINTERVALSECS": "0",
    }
    with (folder / "felix.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tortie.felix.daemon"], env=environment, stdout=log, stderr=log
        )


def measure(process: subprocess.Popen[bytes], writer: Writer, folder: Path, importing: float) -> None:
    status = folder / "endpoint-status"
    began = time.monotonic()
    wait(lambda: status.exists() and len(os.listdir(status)) == _LOADED)
    ready = time.monotonic() - began
    took = []
    for number in range(_LOADED, _LOADED + _ROUNDS):
        file = status / f"k8s default%2Fpod{number} eth0"
        written = endpoint(number)
        began = time.monotonic()
        writer.put(written)
        wait(file.exists)
        took.append(time.monotonic() - began)
        time.sleep(0.15)  # endpoints come one by one here, not in a flood that is throttled
    time.sleep(_SETTLE)
    before, cpu = time.monotonic(), ticks(process.pid)
    wait(lambda: time.monotonic() > before + _IDLE)
    idle = (ticks(process.pid) - cpu) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - before)
    resident = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert resident
    print(f"the felix process, with etcd and {_LOADED + _ROUNDS} endpoints")
    print(f"    import of its code       {ms(importing)}")
    print(f"    start to all programmed  {ms(ready)}   ({_LOADED} endpoints)")
    print(f"    put in etcd -> status up p50 {ms(statistics.median(took))}   p99 {ms(quantile(took))}")
    print(f"    resident memory          {int(resident[1]) / 1024:8.1f} MiB")
    print(f"    idle CPU                 {idle * 100:8.2f} % of a core over {_IDLE:.0f} s")


def ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("felix did not get there within a minute")
        time.sleep(0.001)


def profile() -> tuple[Key, Any]:
    rule = V3Rule(action="Allow")
    spec = ProfileSpec(ingress=(rule,), egress=(rule,))
    return ResourceKey("Profile", "kns.default"), V3Profile(
        metadata=ObjectMeta(name="kns.default"), spec=spec
    )


def endpoint(number: int) -> tuple[Key, Any]:
    resource = f"bench-k8s-pod{number}-eth0"
    spec = WorkloadEndpointSpec(
        orchestrator="k8s", node="bench", pod=f"pod{number}", endpoint="eth0", ipNetworks=address(number),
        profiles=("kns.default",), interfaceName=name(number),
    )  # fmt: skip
    metadata = ObjectMeta(name=resource, namespace="default")
    return ResourceKey("WorkloadEndpoint", resource, "default"), WorkloadEndpoint(
        metadata=metadata, spec=spec
    )


if __name__ == "__main__":
    main()
