"""How long a change takes from etcd to the kernel: start in a big cluster, a pod's labels, a policy's rule.

    sudo python bench/changes.py [POLICIES REMOTE]...      (default: 1000 1000, 1000 10000)

Runs itself again inside its own network namespace; nothing outside is touched. felix runs as a process of its
own with a real etcd, in both dataplanes; the node has 100 endpoints. A change counts from its put until a
question to the kernel finds what it leads to: after one pod elsewhere got other labels, its address in the
two sets it belongs to then (some 20 members, and a quarter of all); after one rule of a policy has another
port, the policy's new chain for IPv4 and for IPv6. CPU is that of felix and the tools it runs.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.parts import isolated, world
from bench.parts.probe import Probe
from bench.parts.world import NODE, World
from bench.parts.writer import Writer
from tortie.felix.calc.model import PolicyId
from tortie.felix.rules import ir, names
from tortie.felix.rules.nftables import TABLE, chain_key
from tortie.lab.etcd import Etcd

_SIZES = (1_000, 1_000, 1_000, 10_000)
_LOCAL = 100
_ROUNDS = 100
_PAUSE = 0.13  # seconds between changes: a flood would be gathered into ten passes a second, as in Calico
_DEADLINE = 120.0
_TICK = os.sysconf("SC_CLK_TCK")
_ROOT = str(Path(__file__).resolve().parent.parent)


def main() -> None:
    isolated.ensure_network()
    print(f"Linux {os.uname().release}, Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f}\n")
    sizes = [int(text) for text in sys.argv[1:]] or _SIZES
    for policies, remote in zip(*[iter(sizes)] * 2, strict=True):
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
            measure_in(Path(folder), World(_LOCAL, policies, remote=remote))


def measure_in(folder: Path, size: World) -> None:
    etcd = Etcd(folder)
    etcd.start()
    writer = Writer(etcd)
    try:
        writer.put(*size.objects())
        for nftables in (True, False):
            dataplane = "nftables" if nftables else "iptables (nft back-end) and ipset"
            print(f"{dataplane}: {size.policies:,} policies, {size.remote:,} endpoints elsewhere")
            datastore = {"DATASTORE_TYPE": "etcdv3", "ETCD_ENDPOINTS": etcd.endpoint}
            felix = Felix(datastore, folder, nftables)
            try:
                report(felix, writer, size)
            finally:
                felix.kill()
            writer.put(*(world.remote(number) for number in range(_ROUNDS)))
            writer.put(*(size.policy(number) for number in range(_ROUNDS)))
            wipe()
    finally:
        writer.close()
        etcd.stop()


def wipe() -> None:
    for command in (["nft", "flush", "ruleset"], ["ipset", "destroy"]):
        subprocess.run(command, check=True)


class Felix:
    """The process, and what the kernel has of its work."""

    def __init__(
        self, datastore: Mapping[str, str], folder: Path, nftables: bool, *prefix: str, node: str = NODE
    ) -> None:
        """`datastore` is what the environment says of it, `prefix` what stands before the command."""
        self.nftables = nftables
        self.log = folder / f"felix-{nftables}.log"
        self.probe = Probe()
        self.began = time.monotonic()
        environment = {
            **os.environ,
            "PYTHONPATH": _ROOT,
            **datastore,
            "FELIX_FELIXHOSTNAME": node,
            "FELIX_IPTABLESBACKEND": "nft",
            "FELIX_NFTABLESMODE": "Enabled" if nftables else "Disabled",
            "FELIX_ENDPOINTSTATUSPATHPREFIX": str(folder),
            "FELIX_REPORTINGINTERVALSECS": "0",
        }
        with self.log.open("wb") as log:
            command = [*prefix, sys.executable, "-m", "tortie.felix.daemon"]
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        return self._process.pid

    def has_said(self, text: str) -> bool:
        return text in self.log.read_text()

    def member(self, ident: str, address: str) -> bool:
        if self.nftables:
            return self.probe.in_nft_set(TABLE, names.nft_set(4, ident), address)
        return self.probe.in_ipset(names.ip_set(4, ident), address)

    def chain(self, version: int, ident: PolicyId) -> tuple[bytes, ...]:
        """The policy's, for what comes in."""
        name = names.chain(names.POLICY_IN, ident.text)
        if self.nftables:
            return self.probe.rules(version, TABLE, chain_key(ir.FILTER, name)[1])
        return self.probe.rules(version, ir.FILTER, name)

    def cpu(self) -> float:
        """Seconds, of it and of the tools it ran."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / _TICK

    def resident(self) -> float:
        """MiB."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self._process.pid}/status").read_text())
        assert found
        return int(found[1]) / 1024

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


# --- measuring ------------------------------------------------------------------------------------


def report(felix: Felix, writer: Writer, size: World) -> None:
    wait(lambda: felix.has_said("the datastore is in sync"), felix)
    synced = time.monotonic() - felix.began
    last = PolicyId(f"policy-{size.policies - 1}", "", "GlobalNetworkPolicy")
    wait(lambda: felix.chain(4, last) and felix.chain(6, last), felix)
    print(f"  start to in sync       {synced:8.2f} s    to all rules in the kernel "
          f"{time.monotonic() - felix.began:.2f} s    CPU {felix.cpu():.2f} s")  # fmt: skip
    wait(lambda: felix.has_said("first apply done") or time.monotonic() > felix.began + 10, felix)
    time.sleep(1.0)  # the first apply leaves the rest of its work behind
    tell("one pod's labels", [label_change(felix, writer, number) for number in range(_ROUNDS)])
    tell("one rule", [rule_edit(felix, writer, size, number) for number in range(_ROUNDS)])
    print(f"  resident memory        {felix.resident():8.0f} MiB\n")


def label_change(felix: Felix, writer: Writer, number: int) -> tuple[float, float]:
    bag, zone, address = number + 7, number + 1, world.remote_address(number)
    changed = world.remote(number, bag=bag, zone=zone)
    sets = (world.bag_set(bag), world.zone_set(zone))
    return timed(felix, lambda: writer.put(changed), lambda: all(felix.member(one, address) for one in sets))


def rule_edit(felix: Felix, writer: Writer, size: World, number: int) -> tuple[float, float]:
    key, changed = size.policy(number, 10_000 + number)
    ident = PolicyId(f"policy-{number}", "", "GlobalNetworkPolicy")
    before = [felix.chain(version, ident) for version in (4, 6)]

    def there() -> bool:
        now = [felix.chain(version, ident) for version in (4, 6)]
        return all(new and new != old for new, old in zip(now, before, strict=True))

    return timed(felix, lambda: writer.put((key, changed)), there)


def timed(felix: Felix, change: Callable[[], None], there: Callable[[], object]) -> tuple[float, float]:
    """Seconds until it is there, and of CPU until the next may come."""
    if there():
        sys.exit("what is to come is there already")
    cpu, began = felix.cpu(), time.monotonic()
    change()
    wait(there, felix)
    took = time.monotonic() - began
    time.sleep(_PAUSE)
    return took, felix.cpu() - cpu


def wait(condition: Callable[[], object], felix: Felix) -> None:
    deadline = time.monotonic() + _DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"felix did not get there within {_DEADLINE:.0f} s:\n{felix.log.read_text()[-2000:]}")
        time.sleep(0.0005)


def tell(what: str, measured: list[tuple[float, float]]) -> None:
    seconds = sorted(took for took, _ in measured)
    middle, last = seconds[len(seconds) // 2], seconds[round(len(seconds) * 0.99) - 1]
    cpu = sum(spent for _, spent in measured) / len(measured)
    print(
        f"  {what:<22} {middle * 1000:8.1f} ms p50 {last * 1000:8.1f} ms p99   CPU {cpu * 1000:.0f} ms each"
    )


if __name__ == "__main__":
    main()
