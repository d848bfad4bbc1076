"""BGP: 10,000 prefixes into the kernel beside BIRD 2, memory and idle CPU. `sudo ./dev bench bgp [PREFIXES]`

A BIRD 2 router announces the prefixes to a node of ours and to a BIRD 2 that programs them the way
Calico's does; each is measured on its own, in fresh network namespaces, in turns. The clock runs from
`birdc configure` at the sender until all routes stand in the receiver's kernel; the same for
withdrawal. Then the node is left alone and its CPU time is counted.
"""

import ipaddress
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from socket import AF_INET

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.bgp.bgp_lab import BgpNode, Underlay, configuration, node_resource, peer_resource, pool_resource
from tests.netns_lab import Namespace
from tortie.confd.snapshot import Snapshot
from tortie.linux import routes

_ROUNDS = 3
_IDLE = 20.0  # seconds
_POLL = threading.Event()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    results: dict[str, list[tuple[float, float]]] = {"tortie": [], "bird": []}
    for _ in range(_ROUNDS):
        results["bird"].append(_with_lab(lambda lab: lab.bird_receives(count)))
        results["tortie"].append(_with_lab(lambda lab: lab.we_receive(count, idle=False)))
    print(f"{count} prefixes, median of {_ROUNDS} (all runs); seconds")
    median: dict[tuple[str, int], float] = {}
    for column, what in enumerate(("announced", "withdrawn")):
        for who in results:
            runs = sorted(run[column] for run in results[who])
            median[who, column] = statistics.median(runs)
            print(f"  {what}  {who:7} {median[who, column]:.3f}  ({', '.join(f'{run:.3f}' for run in runs)})")
        print(f"  {what}  ratio   {median['tortie', column] / median['bird', column]:.2f}")
    _with_lab(lambda lab: lab.we_receive(count, idle=True))
    _import_time()


def _with_lab(measure: "Callable[[Lab], tuple[float, float]]") -> tuple[float, float]:
    lab = Lab()
    try:
        return measure(lab)
    finally:
        lab.close()


class Lab:
    """A sender at 10.9.0.9, AS 65009, and room for one receiver at 10.9.0.1, AS 64512."""

    def __init__(self) -> None:
        self._namespaces: list[Namespace] = []
        self._underlay = Underlay(self._make)
        self._sender = Bird(self._underlay.attach(9), "sender")
        self._birds = [self._sender]
        self._node: BgpNode | None = None

    def _make(self) -> Namespace:
        self._namespaces.append(Namespace())
        return self._namespaces[-1]

    def close(self) -> None:
        if self._node is not None:
            self._node.close()
        for bird in self._birds:
            bird.close()
        for namespace in self._namespaces:
            namespace.close()

    def bird_receives(self, count: int) -> tuple[float, float]:
        receiver = Bird(self._underlay.attach(1), "receiver")
        self._birds.append(receiver)
        receiver.start(_receiver_config())
        return self._measure(receiver.ns, receiver.established, routes.PROTOCOL_BIRD, count)

    def we_receive(self, count: int, idle: bool) -> tuple[float, float]:
        cluster = Snapshot()
        cluster.nodes["node"] = node_resource("node", "10.9.0.1/24")
        cluster.pools["pool"] = pool_resource("pool", "172.16.0.0/12")
        cluster.bgp["default"] = configuration(nodeToNodeMeshEnabled=False)
        cluster.peers["sender"] = peer_resource("sender", peerIP="10.9.0.9", asNumber=65009)
        node = self._node = BgpNode(self._underlay.attach(1), "node", cluster)
        node.own()
        node.render()
        node.start()
        took = self._measure(node.ns, lambda: node.established() == 1, routes.PROTOCOL_BGP, count, keep=idle)
        if idle:
            _report_idle(node, count)
        return took

    def _measure(
        self,
        ns: Namespace,
        ready: Callable[[], bool],
        protocol: int,
        count: int,
        keep: bool = False,
    ) -> tuple[float, float]:
        self._sender.start(_sender_config(0))
        _wait(ready)
        time.sleep(2)  # both sides have sent their first keep-alives and are quiet

        def standing() -> int:
            return sum(1 for body in routes.dump_frames(ns.netlink, AF_INET, 254, protocol))

        def until(wanted: int) -> float:
            self._sender.configure(_sender_config(wanted))
            began = time.monotonic()
            _wait(lambda: standing() == wanted)
            return time.monotonic() - began

        announced = until(count)
        return announced, 0.0 if keep else until(0)


class Bird:
    """A BIRD 2 in a namespace."""

    def __init__(self, ns: Namespace, name: str) -> None:
        self.ns = ns
        self._dir = tempfile.mkdtemp(prefix=f"bird-{name}-")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, config: str) -> None:
        self._write(config)
        command = ["bird", "-f", "-c", f"{self._dir}/conf", "-s", f"{self._dir}/ctl"]
        self._process = self.ns.call(subprocess.Popen, command, stderr=subprocess.DEVNULL)
        _wait(lambda: os.path.exists(f"{self._dir}/ctl"))

    def configure(self, config: str) -> None:
        """Give it another configuration; returns when it has been told."""
        self._write(config)
        self.control("configure")

    def control(self, *words: str) -> str:
        command = ["birdc", "-s", f"{self._dir}/ctl", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def established(self) -> bool:
        return "Established" in self.control("show", "protocols")

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for name in os.listdir(self._dir):
            os.unlink(f"{self._dir}/{name}")
        os.rmdir(self._dir)

    def _write(self, config: str) -> None:
        Path(f"{self._dir}/conf").write_text(config)


def _sender_config(count: int) -> str:
    base = int(ipaddress.IPv4Address("172.16.0.0"))
    blocks = (f"  route {ipaddress.IPv4Address(base + 64 * i)}/26 blackhole;" for i in range(count))
    statics = "\n".join(blocks)
    return f"""
router id 10.9.0.9;
protocol device {{}}
protocol static blocks {{ ipv4; {statics} }}
protocol bgp receiver {{
  local 10.9.0.9 as 65009; neighbor 10.9.0.1 as 64512; multihop; passive;
  ipv4 {{ import none; export where source = RTS_STATIC; next hop self; }};
}}
"""


def _receiver_config() -> str:
    return """
router id 10.9.0.1;
protocol device {}
protocol direct { ipv4; }
protocol kernel { ipv4 { export where source = RTS_BGP; }; merge paths on; }
protocol bgp sender {
  local 10.9.0.1 as 64512; neighbor 10.9.0.9 as 65009; multihop; connect delay time 1;
  ipv4 { import all; export none; gateway recursive; };
}
"""


def _wait(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not so within {seconds} s")
        _POLL.wait(0.02)


def _report_idle(node: BgpNode, count: int) -> None:
    assert node.process is not None
    pids = {"ExaBGP": node.process.pid, "agent": node.agent_pid()}
    time.sleep(3)
    before = {name: _cpu(pid) for name, pid in pids.items()}
    time.sleep(_IDLE)
    print(f"idle for {_IDLE:.0f} s with {count} prefixes")
    for name, pid in pids.items():
        share = 100 * (_cpu(pid) - before[name]) / _IDLE
        print(f"  {name:7} {_rss(pid):6.1f} MB resident  {share:.2f} % of a core")


def _cpu(pid: int) -> float:
    """Seconds of CPU time used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss(pid: int) -> float:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def _import_time() -> None:
    runs = []
    for _ in range(5):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import tortie.bgp.agent"], check=True)
        runs.append(time.monotonic() - began)
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    print(f"agent: import {min(runs):.3f} s, of which Python itself {time.monotonic() - began:.3f} s")


if __name__ == "__main__":
    main()
