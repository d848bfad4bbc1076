"""What attaching and detaching a pod costs, beside Debian's `bridge` and `host-local` plugins.

    sudo python bench/cni.py [pods per round] [rounds]

Both are driven by the same runtime, in turns, in the same run: ours through its binary and server with
a real etcd behind it, theirs as they are. Everything happens in network and mount namespaces of its
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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tortie.cni.shim import build
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.connect import connect
from tortie.datastore.types.cluster import ClusterInformation, ClusterInformationSpec
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node
from tortie.lab.etcd import Etcd
from tortie.lab.runtime import Attachment, Chain, attachment
from tortie.linux import links, netns
from tortie.linux.netlink import NetlinkSocket

_INSIDE = "TORTIE_BENCH_INSIDE"
_ROOT = Path(__file__).resolve().parent.parent
_THEIRS = "/usr/lib/cni"
_AT_ONCE = 8
_PERCENTILES = (50, 99)

Times = dict[str, list[float]]  # "ADD" | "DEL" -> milliseconds


def main() -> None:
    if os.environ.get(_INSIDE) != "1":
        command = ["unshare", "-n", "-m", sys.executable, *sys.argv]
        sys.exit(subprocess.run(command, env={**os.environ, _INSIDE: "1"}, check=False).returncode)
    pods = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with NetlinkSocket() as netlink:
        netlink.execute(links.change("lo", up=True))
    folder = Path(tempfile.mkdtemp(prefix="bench-cni-"))
    try:
        with etcd(folder) as endpoint, server(folder, endpoint) as process:
            print(f"Linux {os.uname().release}, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs")
            print(f"{rounds} rounds of {pods} pods each way\n")
            report(ours(folder), theirs(folder), pods, rounds)
            report_server(process.pid)
    finally:
        shutil.rmtree(folder)


# --- the two networks ---------------------------------------------------------------------------


@contextmanager
def etcd(folder: Path) -> Iterator[str]:
    one = Etcd(folder / "etcd")
    one.start()
    try:
        asyncio.run(seed(one.endpoint))
        yield one.endpoint
    finally:
        one.stop()


async def seed(endpoint: str) -> None:
    """What calico-node's start-up would have written."""
    client = connect(DatastoreConfig(etcdEndpoints=(endpoint,)))
    ready = ClusterInformationSpec(datastoreReady=True, clusterGUID="bench")
    await client.create(ClusterInformation(metadata=ObjectMeta(name="default"), spec=ready))
    await client.create(Node(metadata=ObjectMeta(name="bench")))
    pool = IPPoolSpec(cidr="10.64.0.0/16", blockSize=26, nodeSelector="all()")
    await client.create(IPPool(metadata=ObjectMeta(name="pool"), spec=pool))
    await client.close()


@contextmanager
def server(folder: Path, endpoint: str) -> Iterator[subprocess.Popen[bytes]]:
    os.environ |= {
        "ETCD_ENDPOINTS": endpoint,
        "CALICO_RUN_DIR": str(folder / "run"),
        "CALICO_LIB_DIR": str(folder / "lib"),
        "TORTIE_CNI_SOCKET": str(folder / "run" / "cni.sock"),
        "PYTHONPATH": str(_ROOT),
    }
    (folder / "lib").mkdir()
    (folder / "lib" / "nodename").write_text("bench")
    for name in ("calico", "calico-ipam"):
        build(str(folder / "bin" / name))
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "tortie.cni.server"], stderr=log)
    try:
        while not (folder / "run" / "cni.sock").exists():
            time.sleep(0.01)
        yield process
    finally:
        process.terminate()
        process.wait()


def ours(folder: Path) -> Chain:
    plugin = {"type": "calico", "ipam": {"type": "calico-ipam"}, "policy": {"type": "k8s"}}
    conflist = {"name": "ours", "cniVersion": "1.0.0", "plugins": [plugin]}
    return Chain(conflist, [str(folder / "bin")], execute)


def theirs(folder: Path) -> Chain:
    ipam = {
        "type": "host-local",
        "dataDir": str(folder / "host-local"),
        "ranges": [[{"subnet": "10.88.0.0/16"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugin = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam}
    conflist = {"name": "theirs", "cniVersion": "1.0.0", "plugins": [plugin]}
    return Chain(conflist, [_THEIRS], execute)


def execute(plugin: str, environment: Any, stdin: bytes) -> tuple[int, bytes]:
    """Like a runtime written in Go: no copy of this process is made, the child is spawned."""
    program = os.path.join(environment["CNI_PATH"], plugin)
    done = subprocess.run(
        [program],
        env=environment,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
        close_fds=False,
    )
    return done.returncode, done.stdout


# --- measuring ----------------------------------------------------------------------------------


def report(ours: Chain, theirs: Chain, pods: int, rounds: int) -> None:
    print(f"{'':24}{'ours p50':>10}{'p99':>8}{'bridge p50':>12}{'p99':>8}{'ratio p50':>11}")
    attach(ours, 2, 1), attach(theirs, 2, 1)  # the first of each claims a block, creates the bridge
    for title, at_once in (("one after the other", 1), (f"{_AT_ONCE} at once", _AT_ONCE)):
        mine: Times = {"ADD": [], "DEL": []}
        other: Times = {"ADD": [], "DEL": []}
        for _ in range(rounds):
            for total, chain in ((mine, ours), (other, theirs)):
                for command, times in attach(chain, pods, at_once).items():
                    total[command] += times
        for command in ("ADD", "DEL"):
            row(f"{command}, {title}", mine[command], other[command])
        row(f"both, {title}", sums(mine), sums(other))


def sums(times: Times) -> list[float]:
    """ADD and DEL of the same pod together."""
    return [add + delete for add, delete in zip(times["ADD"], times["DEL"], strict=True)]


def row(title: str, mine: list[float], other: list[float]) -> None:
    (a, b), (c, d) = percentiles(mine), percentiles(other)
    print(f"{title:24}{a:10.1f}{b:8.1f}{c:12.1f}{d:8.1f}{a / c:11.2f}")


def percentiles(values: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[_PERCENTILES[0] - 1], cuts[_PERCENTILES[1] - 1]


def attach(chain: Chain, pods: int, at_once: int) -> Times:
    """Attach and detach so many pods; the time of each call in milliseconds."""
    namespaces = [netns.create() for _ in range(pods)]
    wanted = [pod(index, fd) for index, fd in enumerate(namespaces)]
    try:
        with ThreadPoolExecutor(at_once) as threads:
            return {
                "ADD": list(threads.map(timed(chain.add), wanted)),
                "DEL": list(threads.map(timed(chain.delete), wanted)),
            }
    finally:
        for fd in namespaces:
            os.close(fd)


def pod(index: int, fd: int) -> Attachment:
    container = f"{time.time_ns():x}{index:04d}".ljust(64, "0")
    args = {"labels": {"app": "bench"}, "serviceAccountName": "default"}
    return attachment(container, f"/proc/{os.getpid()}/fd/{fd}", "eth0", f"pod-{index}", "default", args)


def timed(function: Callable[[Attachment], object]) -> Callable[[Attachment], float]:
    def call(wanted: Attachment) -> float:
        started = time.perf_counter()
        function(wanted)
        return (time.perf_counter() - started) * 1000

    return call


# --- the server itself --------------------------------------------------------------------------


def report_server(pid: int) -> None:
    with open(f"/proc/{pid}/status") as source:
        resident = next(int(line.split()[1]) for line in source if line.startswith("VmRSS:"))
    bare, loaded = (started(code) for code in ("pass", "import tortie.cni.server, tortie.datastore.etcd"))
    print(f"\nserver: imports {(loaded - bare) * 1000:.0f} ms, resident {resident / 1024:.0f} MiB")


def started(code: str, times: int = 5) -> float:
    """The best time in seconds of a Python that runs `code`."""
    return min(_run([sys.executable, "-c", code]) for _ in range(times))


def _run(command: Sequence[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
