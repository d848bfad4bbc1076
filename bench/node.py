"""A whole idle node of three: memory, CPU, start to ready, imports. `sudo ./dev bench node [SECONDS]`

Runs itself again inside namespaces of its own; nothing outside is touched. The node that is measured has
four pods of its own and two neighbours with one each; nothing changes while CPU is counted, for a minute
if not told otherwise. RSS counts a shared page in every process of the node, PSS in shares also with the
neighbours; `distinct` counts each page that the node holds once: what a machine of its own would need.
"""

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.parts import isolated
from tortie.lab.cluster import Lab, LabNode, wait_until
from tortie.linux import netns

_IDLE = 60.0  # seconds
_SETTLE = 120.0  # seconds after a start: felix looks at what it wrote again and again, each time later
_STARTS = 3  # of each kind; the median is told
_IMPORTS = 5  # of each entry; the best is told
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGESIZE")
_PRESENT, _FRAME = 1 << 63, (1 << 55) - 1  # of an entry of /proc/PID/pagemap: in memory; page frame number
_PARTS = {  # what the command line contains -> what the process is
    "-felix": "felix",
    "-confd": "confd",
    "-cni-server": "cni",
    "-allocate-tunnel-addrs": "tunnels",
    "tortie.bgp.agent": "bgp",
    "tortie.bgp.exabgp": "exabgp",
    "calico-node": "supervisor",
}
_ENTRIES = {  # process -> the modules it imports to start; calicoctl's is the first for any command
    "supervisor": "tortie.node.run",
    "start-up": "tortie.node.startup, tortie.datastore.etcd",
    "felix": "tortie.felix.daemon, tortie.datastore.etcd",
    "confd": "tortie.confd.daemon, tortie.datastore.etcd",
    "exabgp": "tortie.bgp.exabgp, exabgp.application.server",
    "bgp": "tortie.bgp.agent",
    "tunnels": "tortie.node.tunneladdresses, tortie.datastore.etcd",
    "cni": "tortie.cni.server, tortie.datastore.etcd",
    "calicoctl": "tortie.calicoctl.main",
}


def main() -> None:
    isolated.ensure()
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else _IDLE
    print(f"Linux {os.uname().release}, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs\n")
    folder = Path(tempfile.mkdtemp(prefix="bench-node-"))
    lab = Lab(folder, 2)
    try:
        lab.up()
        fresh = [new_node(lab) for _ in range(_STARTS)]
        node = lab.nodes["node-3"]
        for name, where in [("a", 3), ("b", 3), ("c", 3), ("d", 3), ("e", 1), ("f", 2)]:
            lab.add_pod(name, f"node-{where}")
        again = [restart(node) for _ in range(_STARTS)]
        wait_until(lambda: all(answer.ok for answer in lab.matrix().values()), "the pods", 30)
        report_ready(fresh, again)
        report_idle(node, seconds)
    finally:
        lab.down()
        shutil.rmtree(folder)
    report_imports()


# --- start to ready -----------------------------------------------------------------------------


def new_node(lab: Lab) -> float:
    """Seconds until calico-node is ready on a third machine, which never had it."""
    if "node-3" in lab.nodes:
        lab.remove_machine("node-3")
    node = lab.add_machine()
    return until_ready(node, node.start_agent)


def restart(node: LabNode) -> float:
    """The same on a node with pods, whose kernel still holds everything."""
    node.stop_agent()
    return until_ready(node, node.start_agent)


def until_ready(node: LabNode, start: Callable[[], None]) -> float:
    """Until every component reports ready and every BGP session is established."""
    begun = time.perf_counter()
    start()
    namespace = netns.open(node.box.netns)
    node.wait_until(lambda: reports_ready(namespace), "every component to be ready", 60)
    node.wait_ready()  # asks in another process, which costs time: hence only now
    os.close(namespace)
    return time.perf_counter() - begun


def reports_ready(namespace: int) -> bool:
    try:
        with netns.call_in(namespace, socket.create_connection, ("127.0.0.1", 9099), 1.0) as connection:
            connection.sendall(b"GET /readiness HTTP/1.0\r\n\r\n")
            return connection.recv(64).split()[1] == b"200"
    except (OSError, IndexError):
        return False


def report_ready(fresh: list[float], again: list[float]) -> None:
    print("start to ready, seconds (median; all)")
    for what, times in (("new node", fresh), ("restart with 4 pods", again)):
        print(f"  {what:20}{statistics.median(times):6.2f}   {', '.join(f'{t:.2f}' for t in times)}")


# --- memory and CPU -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Process:
    name: str
    rss: float  # MiB
    pss: float  # MiB
    cpu: float  # seconds, with those of children that ended


def processes(node: LabNode) -> dict[int, Process]:
    """Pid -> process."""
    return {pid: look(pid) for pid in node.node_pids()}


def look(pid: int) -> Process:
    line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().rstrip()
    name = next((name for words, name in _PARTS.items() if words in line), line)
    memory = {}  # field -> KiB
    for row in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        field, value = row.split()[:2]
        memory[field] = int(value)
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
    return Process(name, memory["Rss:"] / 1024, memory["Pss:"] / 1024, sum(map(int, times)) / _TICK)


def report_idle(node: LabNode, seconds: float) -> None:
    time.sleep(_SETTLE)
    before = processes(node)
    time.sleep(seconds)
    after = processes(node)
    if before.keys() != after.keys():
        sys.exit(f"not idle: processes {sorted(before)} became {sorted(after)}")
    print(f"\nan idle node; CPU over {seconds:.0f} s")
    print(f"  {'':12}{'RSS MiB':>9}{'PSS MiB':>9}{'CPU %':>8}")
    rows = [
        (one.name, one.rss, one.pss, 100 * (one.cpu - before[pid].cpu) / seconds)
        for pid, one in after.items()
    ]
    rows.sort()
    rows.append(("whole node", *(sum(row[i] for row in rows) for i in (1, 2, 3))))
    for name, rss, pss, cpu in rows:
        print(f"  {name:12}{rss:9.1f}{pss:9.1f}{cpu:8.2f}")
    print(f"  {'distinct':12}{distinct(after):9.1f}")


def distinct(pids: Iterable[int]) -> float:
    """MiB of different pages that these processes have in memory."""
    frames: set[int] = set()
    for pid in pids:
        with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                start, _, end = line.partition(" ")[0].partition("-")
                first, last = int(start, 16) // _PAGE, int(end, 16) // _PAGE
                pagemap.seek(first * 8)
                entries = array("Q", pagemap.read((last - first) * 8))
                frames.update(entry & _FRAME for entry in entries if entry & _PRESENT)
    return len(frames) * _PAGE / 2**20


# --- imports ------------------------------------------------------------------------------------


def report_imports() -> None:
    print("\nimports of each process' entry, above a bare Python")
    print(f"  {'':12}{'ms':>9}{'modules':>9}")
    bare = best("pass")
    for name, module in _ENTRIES.items():
        milliseconds = (best(f"import {module}") - bare) * 1000
        print(f"  {name:12}{milliseconds:9.0f}{modules(module):9}")


def best(code: str) -> float:
    """The best time in seconds of a Python that runs `code`."""
    return min(timed([sys.executable, "-c", code]) for _ in range(_IMPORTS))


def timed(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - begun


def modules(module: str) -> int:
    code = f"import sys; before = len(sys.modules); import {module}; print(len(sys.modules) - before)"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)


if __name__ == "__main__":
    main()
