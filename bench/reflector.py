"""Routes reflected to many clients: both back-ends beside BIRD 2. `sudo ./dev bench reflector`

Arguments: the number of clients, and how many prefixes each announces. Clients are BIRD 2 without a
kernel, so that their work is the same whoever reflects. The sessions stand; then every client begins to
announce its prefixes, and the clock runs until every client has those of all others. The reflector is a
node of ours with the ExaBGP back-end, one with the BIRD back-end, and a BIRD 2 configured by hand; each
puts all routes into its kernel as well. In turns.
"""

import ipaddress
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.bgp.bgp_lab import BgpNode, configuration, node_resource, peer_resource, pool_resource
from tests.netns_lab import Namespace
from tortie.bgp import birdctl, birdoutput
from tortie.confd import context, render
from tortie.confd.snapshot import Snapshot
from tortie.core.errors import PeerError

_ROUNDS = 3
_SIZES = (10, 20, 30, 100)  # clients, where none are given
_PREFIXES = 100  # of each client
_REFLECTOR, _AS, _POOL = "10.9.0.1", 64512, "172.16.0.0/12"
_LONGEST = 300.0  # seconds
_POLL = threading.Event()

_Pids = Callable[[], list[int]]
_Start = Callable[[Namespace, int, ExitStack], _Pids]


def main() -> None:
    given = [int(word) for word in sys.argv[1:3]]
    sizes = tuple(given[:1]) or _SIZES
    prefixes = given[1] if len(given) > 1 else _PREFIXES
    print(f"{prefixes} prefixes a client, median of {_ROUNDS} (all runs)")
    print("seconds until all have all, and seconds of the reflector's CPU until then")
    for clients in sizes:
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in _REFLECTORS}
        for _ in range(_ROUNDS):
            for name, start in _REFLECTORS.items():
                runs[name].append(_measure(start, clients, prefixes))
        plain = _medians(runs["BIRD 2"])
        for name, took in runs.items():
            cells = (
                f"{own:7.2f} x{own / base:<7.2f}" for own, base in zip(_medians(took), plain, strict=True)
            )
            every = ", ".join(f"{wall:.2f}/{cpu:.2f}" for wall, cpu in took)
            print(f"  {clients:3} clients  {name:15}{''.join(cells)}({every})", flush=True)


def _medians(runs: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(wall for wall, _ in runs), statistics.median(cpu for _, cpu in runs)


def _measure(start: _Start, clients: int, prefixes: int) -> tuple[float, float]:
    """Seconds until all have all, and of the reflector's CPU meanwhile."""
    with ExitStack() as stack:
        reflector, far = Namespace(), Namespace()
        stack.callback(far.close)
        stack.callback(reflector.close)
        reflector.veth("eth0", "eth0", far)
        reflector.run("ip", "addr", "add", f"{_REFLECTOR}/16", "dev", "eth0")
        for number in range(clients):
            far.run("ip", "addr", "add", f"{_client(number)}/16", "dev", "eth0")
        pids = start(reflector, clients, stack)
        folders = [_start_client(far, number, stack) for number in range(clients)]
        controls = [str(folder / "ctl") for folder in folders]
        for control in controls:
            _wait(lambda c=control: _established(c))  # type: ignore[misc]
        _POLL.wait(3.0)  # what comes with a session's start is over
        for number, folder in enumerate(folders):
            (folder / "conf").write_text(_client_config(number, prefixes))
        before, began = _cpu(pids()), time.monotonic()
        for control in controls:
            birdctl.ask(control, "configure")
        for control in controls:  # the last of them ends it
            _wait(lambda c=control: _heard(c) >= (clients - 1) * prefixes)  # type: ignore[misc]
        return time.monotonic() - began, _cpu(pids()) - before


# --- reflectors -----------------------------------------------------------------------------------


def _cluster(clients: int) -> Snapshot:
    cluster = Snapshot()
    cluster.nodes["rr"] = node_resource("rr", f"{_REFLECTOR}/16", routeReflectorClusterID="1.0.0.1")
    for number in range(clients):
        cluster.nodes[f"c{number}"] = node_resource(f"c{number}", f"{_client(number)}/16")
    cluster.pools["pool"] = pool_resource("pool", _POOL)
    cluster.bgp["default"] = configuration(nodeToNodeMeshEnabled=False)
    cluster.peers["rr"] = peer_resource("rr", nodeSelector="name != 'rr'", peerSelector="name == 'rr'")
    return cluster


def _exabgp(ns: Namespace, clients: int, stack: ExitStack) -> _Pids:
    node = BgpNode(ns, "rr", _cluster(clients))
    stack.callback(node.close)
    node.own()
    node.render()
    node.start()
    return lambda: [node.process.pid if node.process else 0, node.agent_pid()]


def _our_bird(ns: Namespace, clients: int, stack: ExitStack) -> _Pids:
    problems: list[str] = []
    made = context.build(_cluster(clients), "rr", speaker="bird")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reflector-")))
    (folder / "conf").write_bytes(render.bird_cfg(made, 4, problems))
    return _bird(ns, folder, stack)


def _plain_bird(ns: Namespace, clients: int, stack: ExitStack) -> _Pids:
    sessions = "".join(
        f"protocol bgp c{number} {{ local {_REFLECTOR} as {_AS}; neighbor {_client(number)} as {_AS}; "
        "rr client; rr cluster id 1.0.0.1; ipv4 { import all; export where source = RTS_BGP; }; }\n"
        for number in range(clients)
    )
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plain-")))
    (folder / "conf").write_text(
        f"log stderr {{ fatal }};\nrouter id {_REFLECTOR};\nprotocol device {{}}\n"
        "protocol direct { ipv4; }\n"
        f"protocol kernel {{ ipv4 {{ export where source = RTS_BGP; }}; merge paths on; }}\n{sessions}"
    )
    return _bird(ns, folder, stack)


_REFLECTORS: dict[str, _Start] = {"BIRD 2": _plain_bird, "BIRD back-end": _our_bird, "ExaBGP": _exabgp}


# --- clients --------------------------------------------------------------------------------------


def _client(number: int) -> str:
    return f"10.9.{1 + number // 200}.{1 + number % 200}"


def _start_client(ns: Namespace, number: int, stack: ExitStack) -> Path:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="client-")))
    (folder / "conf").write_text(_client_config(number, 0))
    _bird(ns, folder, stack)
    return folder


def _client_config(number: int, prefixes: int) -> str:
    base = int(ipaddress.IPv4Address("172.16.0.0"))
    own = range(number * prefixes, (number + 1) * prefixes)
    blocks = " ".join(f"route {ipaddress.IPv4Address(base + 64 * one)}/26 blackhole;" for one in own)
    return f"""
log stderr {{ fatal }};
router id {_client(number)};
protocol device {{}}
protocol static {{ ipv4; {blocks} }}
protocol bgp reflector {{
  local {_client(number)} as {_AS}; neighbor {_REFLECTOR} as {_AS}; strict bind on;
  connect delay time 1; connect retry time 1; error wait time 1, 2;
  ipv4 {{ import all; export where source = RTS_STATIC; }};
}}
"""


def _bird(ns: Namespace, folder: Path, stack: ExitStack) -> _Pids:
    command = ["bird", "-f", "-c", str(folder / "conf"), "-s", str(folder / "ctl")]
    process: subprocess.Popen[bytes] = ns.call(subprocess.Popen, command, stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)
    _wait(lambda: birdctl.there(str(folder / "ctl")))
    return lambda: [process.pid]


def _cpu(pids: list[int]) -> float:
    """Seconds that the processes' threads have had a CPU (/proc/PID/schedstat, in nanoseconds)."""
    threads = (path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(path.read_text().split()[0]) for path in threads) / 1e9


def _established(control: str) -> bool:
    return any("Established" in line for line in birdctl.ask(control, "show protocols"))


def _heard(control: str) -> int:
    """How many routes a client has; -1 while it is too busy to say."""
    try:
        (found,) = birdoutput.protocols(birdctl.ask(control, "show protocols all reflector"))
    except PeerError:
        return -1
    return found.count("imported")


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LONGEST
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not so within {_LONGEST:.0f} s")
        _POLL.wait(0.05)


if __name__ == "__main__":
    main()
