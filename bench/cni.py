"""What attaching and detaching a pod costs, beside Debian's `bridge` and `host-local` plugins.

    sudo python bench/cni.py [pods each way]

One at a time, 8 and 32 at once, on one node and over three. Ours is driven with and without addresses
kept ready (TORTIE_WARM_POOL), through its binary and a server for each node with one real etcd behind
them; theirs as they are, by the same runtime, in the same run, in turns of a few pods, so that whatever
else the machine does hits all alike. Ratios are to theirs: below 1 ours is faster. What a warm pool does
behind the scenes is over before the next turn. Everything happens in network and mount namespaces of its
own; nothing outside is touched. Also printed: what the server's imports cost and what memory it holds.
"""

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.parts import isolated
from tests.netns_lab import Namespace
from tortie.cni.shim import build
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.connect import connect
from tortie.datastore.types.cluster import ClusterInformation, ClusterInformationSpec
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node
from tortie.lab.etcd import Etcd
from tortie.lab.runtime import Attachment, Chain, attachment
from tortie.linux import addresses, links, netns
from tortie.linux.netlink import NetlinkSocket

_ROOT = Path(__file__).resolve().parent.parent
_THEIRS = "/usr/lib/cni"
_NODES = 3
_AT_ONCE = (1, 8, 32)
_TURN = 8  # pods of one turn, if not more are attached at once
_SETTLE_LIMIT = 30.0  # seconds for refilling the warm pools
_PERCENTILES = (50, 99)
_HUB = "192.0.2.254"  # etcd's address, which the nodes reach over a bridge

BRIDGE, COLD, WARM = "bridge+host-local", "without warm pool", "with warm pool"
_OURS = {COLD: "cold", WARM: "warm"}  # contender -> the beginning of its nodes' names

Times = dict[str, list[float]]  # "ADD" | "DEL" -> milliseconds


def main() -> None:
    isolated.ensure()
    pods = int(sys.argv[1]) if len(sys.argv) > 1 else 96
    folder = Path(tempfile.mkdtemp(prefix="bench-cni-"))
    try:
        with ExitStack() as stack:
            machines = stack.enter_context(cluster(folder, keep=2 * max(_AT_ONCE)))
            print(f"Linux {os.uname().release}, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs")
            print(f"{pods} pods each way; milliseconds, and ratios to {BRIDGE}\n")
            heading()
            for nodes in (1, _NODES):
                for at_once in _AT_ONCE:
                    report(machines[:nodes], pods, at_once, folder)
            report_warm(folder)
            report_server(machines[0].pid)
    finally:
        shutil.rmtree(folder)


# --- the cluster --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Machine:
    """`chains`: contender -> its network here; `pid`: of the server without a warm pool."""

    host: Namespace
    chains: Mapping[str, Chain]
    pid: int


@contextmanager
def cluster(folder: Path, keep: int) -> Iterator[list[Machine]]:
    for name in ("calico", "calico-ipam"):
        build(str(folder / "bin" / name))
    one = Etcd(folder / "etcd", _HUB)
    with ExitStack() as stack:
        hosts = stack.enter_context(wired())
        one.start()
        stack.callback(one.stop)
        asyncio.run(seed(one.endpoint))
        machines = []
        for number, host in enumerate(hosts, 1):
            servers = {
                contender: stack.enter_context(server(folder, host, f"{start}-{number}", one.endpoint, marks))
                for (contender, start), marks in zip(_OURS.items(), ("", f"{keep}:{keep}"), strict=True)
            }
            chains = {c: ours(folder, f"{start}-{number}") for c, start in _OURS.items()}
            chains[BRIDGE] = theirs(folder, number)
            machines.append(Machine(host, chains, servers[COLD].pid))
        yield machines


@contextmanager
def wired() -> Iterator[list[Namespace]]:
    """A network namespace for each node, all of them on a bridge that stands in this one."""
    hosts = [Namespace() for _ in range(_NODES)]
    with NetlinkSocket() as hub:
        hub.execute(links.create_bridge("hub"), links.change("hub", up=True))
        bridge = links.get(hub, "hub")
        assert bridge is not None
        hub.execute(addresses.add(bridge.ifindex, f"{_HUB}/24"))
        for number, host in enumerate(hosts, 1):
            pair = links.create_veth(links.VethEnd(f"node{number}"), links.VethEnd("uplink", host.fd))
            hub.execute(pair, links.change(f"node{number}", up=True, master=bridge.ifindex))
            uplink = host.ifindex("uplink")
            host.netlink.execute(links.change(uplink, up=True), addresses.add(uplink, f"192.0.2.{number}/24"))
    try:
        yield hosts
    finally:
        for host in hosts:
            host.close()


async def seed(endpoint: str) -> None:
    """What calico-node's start-up would have written."""
    client = connect(DatastoreConfig(etcdEndpoints=(endpoint,)))
    ready = ClusterInformationSpec(datastoreReady=True, clusterGUID="bench")
    await client.create(ClusterInformation(metadata=ObjectMeta(name="default"), spec=ready))
    for start in _OURS.values():
        for number in range(1, _NODES + 1):
            await client.create(Node(metadata=ObjectMeta(name=f"{start}-{number}")))
    pool = IPPoolSpec(cidr="10.64.0.0/16", blockSize=26, nodeSelector="all()")
    await client.create(IPPool(metadata=ObjectMeta(name="pool"), spec=pool))
    await client.close()


@contextmanager
def server(
    folder: Path, host: Namespace, name: str, endpoint: str, marks: str
) -> Iterator[subprocess.Popen[bytes]]:
    lib, run = folder / name / "lib", folder / name / "run"
    lib.mkdir(parents=True)
    (lib / "nodename").write_text(name)
    environment = os.environ | {
        "ETCD_ENDPOINTS": endpoint,
        "CALICO_RUN_DIR": str(run),
        "CALICO_LIB_DIR": str(lib),
        "TORTIE_CNI_SOCKET": str(run / "cni.sock"),
        "TORTIE_WARM_POOL": marks,
        "NODENAME": name,
        "PYTHONPATH": str(_ROOT),
    }
    with (folder / name / "server.log").open("wb") as log:
        process = host.call(
            subprocess.Popen, [sys.executable, "-m", "tortie.cni.server"], stderr=log, env=environment
        )
    try:
        while not (run / "cni.sock").exists():
            assert process.poll() is None, (folder / name / "server.log").read_text()
            time.sleep(0.01)
        yield process
    finally:
        process.terminate()
        process.wait()


# --- the networks -------------------------------------------------------------------------------


def ours(folder: Path, node: str) -> Chain:
    plugin = {"type": "calico", "ipam": {"type": "calico-ipam"}, "policy": {"type": "k8s"}}
    conflist = {"name": "ours", "cniVersion": "1.0.0", "plugins": [plugin]}
    return Chain(conflist, [str(folder / "bin")], execute_at(str(folder / node / "run" / "cni.sock")))


def theirs(folder: Path, number: int) -> Chain:
    ipam = {
        "type": "host-local",
        "dataDir": str(folder / f"host-local-{number}"),
        "ranges": [[{"subnet": f"10.{80 + number}.0.0/16"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugin = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam}
    conflist = {"name": "theirs", "cniVersion": "1.0.0", "plugins": [plugin]}
    return Chain(conflist, [_THEIRS], execute_at(""))


def execute_at(server_socket: str) -> Callable[[str, Mapping[str, str], bytes], tuple[int, bytes]]:
    """Like a runtime written in Go: no copy of this process is made, the child is spawned."""

    def execute(plugin: str, environment: Mapping[str, str], stdin: bytes) -> tuple[int, bytes]:
        done = subprocess.run(
            [os.path.join(environment["CNI_PATH"], plugin)],
            env={**environment, "TORTIE_CNI_SOCKET": server_socket},
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
            close_fds=False,
        )
        return done.returncode, done.stdout

    return execute


# --- measuring ----------------------------------------------------------------------------------


def heading() -> None:
    print(f"{'':24}{BRIDGE:>18}{COLD:>32}{WARM:>32}")
    numbers = f"{'p50':>9}{'p99':>9}"
    print(f"{'':24}{numbers}" + f"{numbers}{'ratio p50':>10}{'p99':>6}".rjust(34) * 2)


def report(machines: Sequence[Machine], pods: int, at_once: int, folder: Path) -> None:
    times: dict[str, Times] = {one: {"ADD": [], "DEL": []} for one in (BRIDGE, COLD, WARM)}
    for contender in times:  # the first of each claims a block, creates the bridge, fills the warm pool
        attach(machines, contender, len(machines), 1)
    turn = max(at_once, _TURN)
    for _ in range(max(1, pods // turn)):
        for contender, total in times.items():
            for command, values in attach(machines, contender, turn, at_once).items():
                total[command] += values
            settle(folder)
    where = "1 node" if len(machines) == 1 else f"{len(machines)} nodes"
    for command in ("ADD", "DEL"):
        row(f"{command}, {where}, {at_once} at once", [times[one][command] for one in (BRIDGE, COLD, WARM)])


def row(title: str, columns: Sequence[Sequence[float]]) -> None:
    base, *others = [percentiles(values) for values in columns]
    text = f"{base[0]:9.1f}{base[1]:9.1f}"
    for p50, p99 in others:
        text += f"{p50:9.1f}{p99:9.1f}{p50 / base[0]:10.2f}{p99 / base[1]:6.2f}"
    print(f"{title:24}{text}", flush=True)


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[_PERCENTILES[0] - 1], cuts[_PERCENTILES[1] - 1]


def attach(machines: Sequence[Machine], contender: str, pods: int, at_once: int) -> Times:
    """Attach and detach so many pods, on the machines in turns; the time of each call in milliseconds."""
    namespaces = [netns.create() for _ in range(pods)]
    wanted = [pod(index, fd) for index, fd in enumerate(namespaces)]
    places = [machines[index % len(machines)] for index in range(pods)]
    chains = [place.chains[contender] for place in places]
    try:
        with ThreadPoolExecutor(at_once) as threads:
            return {
                "ADD": list(threads.map(timed, places, [chain.add for chain in chains], wanted)),
                "DEL": list(threads.map(timed, places, [chain.delete for chain in chains], wanted)),
            }
    finally:
        for fd in namespaces:
            os.close(fd)


def pod(index: int, fd: int) -> Attachment:
    container = f"{time.time_ns():x}{index:04d}".ljust(64, "0")
    args = {"labels": {"app": "bench"}, "serviceAccountName": "default"}
    return attachment(container, f"/proc/{os.getpid()}/fd/{fd}", "eth0", f"pod-{index}", "default", args)


def timed(place: Machine, function: Callable[[Attachment], object], wanted: Attachment) -> float:
    def call() -> float:
        started = time.perf_counter()
        function(wanted)
        return (time.perf_counter() - started) * 1000

    return place.host.call(call)


# --- the servers themselves ---------------------------------------------------------------------


def warm_pools(folder: Path) -> list[dict[str, int]]:
    """What each node with a warm pool tells of it."""
    found = []
    for path in folder.glob("warm-*/run/*.prom"):
        lines = (line.rsplit(" ", 1) for line in path.read_text().splitlines() if line[0] != "#")
        found.append({name.removeprefix("tortie_ipam_warm_"): int(value) for name, value in lines})
    return found


def settle(folder: Path) -> None:
    """Wait until all warm pools are full again."""
    deadline = time.monotonic() + _SETTLE_LIMIT
    while any(
        one["handing_over"] or one['addresses{version="4"}'] < one["low"] for one in warm_pools(folder)
    ):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the warm pools are not full after {_SETTLE_LIMIT:.0f} s")
        time.sleep(0.02)


def report_warm(folder: Path) -> None:
    """How many of the ADDs with a warm pool found an address ready: the others waited like those without."""
    pools = warm_pools(folder)
    taken, missed = (sum(one[name] for one in pools) for name in ("taken_total", "missed_total"))
    print(f"\nwarm pool: {taken} of {taken + missed} addresses were ready when they were asked for")


def report_server(pid: int) -> None:
    with open(f"/proc/{pid}/status") as source:
        resident = next(int(line.split()[1]) for line in source if line.startswith("VmRSS:"))
    bare, loaded = (started(code) for code in ("pass", "import tortie.cni.server, tortie.datastore.etcd"))
    print(f"server: imports {(loaded - bare) * 1000:.0f} ms, resident {resident / 1024:.0f} MiB")


def started(code: str, times: int = 5) -> float:
    """The best time in seconds of a Python that runs `code`."""
    return min(_run([sys.executable, "-c", code]) for _ in range(times))


def _run(command: Sequence[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
