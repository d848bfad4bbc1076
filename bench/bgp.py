"""BGP: prefixes into the kernel beside BIRD 2, withdrawals, memory, reloads. `sudo ./dev bench bgp [COUNT …]`

1. A BIRD 2 router announces 10,000 and 100,000 prefixes (or as many as named) to a node of ours and to a
   BIRD 2 that programs them the way Calico's does; each is measured on its own, in fresh network namespaces,
   in turns. The clock runs from `birdc configure` at the sender until all routes stand in the receiver's
   kernel; the same for withdrawal. Memory is that of the receiver with the prefixes less that without.
2. A node gives up a hundred blocks: from its new configuration to the last route in three other kernels.
3. A node with 200 Established sessions gets one more: the check of its file, the reload, what it costs.
4. A node is left alone with 10,000 prefixes, and its CPU time is counted; what starting an agent costs.
"""

import contextlib
import ipaddress
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from socket import AF_INET
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.parts.bgp_lab import World, cpu, resident, wait
from tests.bgp.bgp_lab import BgpNode, Mesh, configuration, node_resource, peer_resource, pool_resource
from tests.bgp.raw_speaker import KEEPALIVE, RawSpeaker, dial_until_up, message, update
from tests.netns_lab import Namespace
from tortie.confd.snapshot import Snapshot
from tortie.linux import routes

_ROUNDS = 3
_IDLE = 20.0  # seconds
_BLOCKS = 100  # of the node that gives them up
_SESSIONS = 200


def main() -> None:
    for count in map(int, sys.argv[1:] or ("10000", "100000")):
        _beside_bird(count)
    _node_gives_up_blocks()
    _reload()
    with World() as world:
        _receive_idle(world, 10_000)
    _import_time()


# --- 1: prefixes into the kernel ------------------------------------------------------------------


class Took(NamedTuple):
    """Seconds until the last route, and MB for all of them."""

    announced: float
    withdrawn: float
    memory: float


def _beside_bird(count: int) -> None:
    results: dict[str, list[Took]] = {"tortie": [], "bird": []}
    for _ in range(_ROUNDS):
        with World() as world:
            results["bird"].append(_bird_receives(world, count))
        with World() as world:
            results["tortie"].append(_we_receive(world, count))
    print(f"{count} prefixes, median of {_ROUNDS} (all runs); seconds")
    for what in ("announced", "withdrawn"):
        median: dict[str, float] = {}
        for who, took in results.items():
            runs = sorted(getattr(one, what) for one in took)
            median[who] = statistics.median(runs)
            print(f"  {what}  {who:7} {median[who]:.3f}  ({', '.join(f'{run:.3f}' for run in runs)})")
        print(f"  {what}  ratio   {median['tortie'] / median['bird']:.2f}")
    for who, took in results.items():
        memory = statistics.median(one.memory for one in took) * 10_000 / count
        print(f"  memory of 10,000 prefixes  {who:7} {memory:.1f} MB")


def _bird_receives(world: World, count: int) -> Took:
    receiver = world.bird(1)
    receiver.start(_receiver_config())
    return _measure(
        world, receiver.ns, lambda: receiver.established() == 1, routes.PROTOCOL_BIRD, count,
        lambda: resident(receiver.pid),
    )  # fmt: skip


def _we_receive(world: World, count: int) -> Took:
    node = _receiving_node(world)
    return _measure(
        world, node.ns, lambda: node.established() == 1, routes.PROTOCOL_BGP, count,
        lambda: sum(resident(pid) for pid in _pids(node).values()),
    )  # fmt: skip


def _receiving_node(world: World) -> BgpNode:
    cluster = Snapshot()
    cluster.nodes["node"] = node_resource("node", "10.9.0.1/24")
    cluster.pools["pool"] = pool_resource("pool", "172.0.0.0/8")
    cluster.bgp["default"] = configuration(nodeToNodeMeshEnabled=False)
    cluster.peers["sender"] = peer_resource("sender", peerIP="10.9.0.9", asNumber=65009)
    node = BgpNode(world.underlay.attach(1), "node", cluster)
    world.keep(node.close)
    node.own()
    node.render()
    node.start()
    return node


def _measure(
    world: World,
    ns: Namespace,
    ready: Callable[[], bool],
    protocol: int,
    count: int,
    memory: Callable[[], float],
) -> Took:
    sender = world.bird(9)
    sender.start(_sender_config(0))
    wait(ready)
    time.sleep(2)  # both sides have sent their first keep-alives and are quiet
    before, others = memory(), _in_main_table(ns)

    def until(wanted: int) -> float:
        sender.configure(_sender_config(wanted))
        began = time.monotonic()
        wait(lambda: _in_main_table(ns) == others + wanted)
        took = time.monotonic() - began
        if (found := _standing(ns, protocol)) != wanted:
            raise SystemExit(f"{found} routes instead of {wanted}")
        return took

    announced = until(count)
    grown = memory() - before
    return Took(announced, until(0), grown)


def _standing(ns: Namespace, protocol: int) -> int:
    return len(routes.dump_frames(ns.netlink, AF_INET, 254, protocol))


def _in_main_table(ns: Namespace) -> int:
    """How many IPv4 routes, whosever. The kernel counts: listing them takes a core from what is measured."""
    told = ns.call(Path("/proc/thread-self/net/fib_triestat").read_text).partition("Main:")[2]
    return int(told.partition("Prefixes:")[2].split()[0])


def _sender_config(count: int) -> str:
    base = int(ipaddress.IPv4Address("172.0.0.0"))
    blocks = (f"  route {ipaddress.IPv4Address(base + 32 * i)}/27 blackhole;" for i in range(count))
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


# --- 2: a node gives up its blocks ----------------------------------------------------------------


def _node_gives_up_blocks() -> None:
    runs = sorted(_give_up() for _ in range(_ROUNDS))
    print(
        f"{_BLOCKS} blocks of a node given up, to the last route on three others: "
        f"{statistics.median(runs):.3f} s ({', '.join(f'{run:.3f}' for run in runs)})"
    )


def _give_up() -> float:
    with World() as world:
        mesh = Mesh(world.namespace, 4)
        world.keep(mesh.close)
        first, *others = mesh.nodes
        first.own(*(f"192.168.{100 + n // 4}.{n % 4 * 64}/26" for n in range(_BLOCKS)))
        mesh.start()
        wait(lambda: all(_standing(one.ns, routes.PROTOCOL_BGP) == _BLOCKS + 3 for one in others))
        wait(first.settled)
        first.own()
        first.render()
        began = time.monotonic()
        wait(lambda: all(_standing(one.ns, routes.PROTOCOL_BGP) == 3 for one in others))
        return time.monotonic() - began


# --- 3: a reload with many sessions ---------------------------------------------------------------


def _reload() -> None:
    with World() as world:
        far = world.underlay.attach(9)
        numbers = [10 + n for n in range(_SESSIONS + 1)]
        for number in numbers:
            far.run("ip", "addr", "add", f"10.9.0.{number}/24", "dev", "eth0")
        cluster = Snapshot()
        for number in (1, *numbers[:-1]):
            cluster.nodes[f"n{number}"] = node_resource(f"n{number}", f"10.9.0.{number}/24")
        cluster.pools["pool"] = pool_resource("pool", "172.16.0.0/12")
        node = BgpNode(world.underlay.attach(1), "n1", cluster)
        world.keep(node.close)
        node.own()
        node.render()
        node.start()
        wait(node.loaded)
        speakers = [_speaker(far, number) for number in numbers[:-1]]
        world.keep(lambda: [one.close() for one in speakers] and None)
        _keep_alive(speakers)
        wait(lambda: node.established() == _SESSIONS and node.settled())
        before = _up_since(node)
        used = {name: cpu(pid) for name, pid in _pids(node).items()}
        cluster.nodes["late"] = node_resource("late", f"10.9.0.{numbers[-1]}/24")
        began = time.monotonic()
        node.render()
        checked = time.monotonic()
        wait(lambda: _names(node, f"10.9.0.{numbers[-1]}"))
        took = time.monotonic() - checked
        spent = {name: cpu(pid) - used[name] for name, pid in _pids(node).items()}
        kept = sum(_up_since(node).get(peer) == since for peer, since in before.items())
        print(
            f"one more session beside {_SESSIONS}: its file made and checked in {checked - began:.2f} s, "
            f"loaded {took:.2f} s later (status is written once a second)\n"
            f"  CPU: ExaBGP {spent['ExaBGP']:.2f} s, agent {spent['agent']:.2f} s; "
            f"{kept} of {len(before)} sessions did not move"
        )


def _speaker(ns: Namespace, number: int) -> RawSpeaker:
    """Established, and with nothing to tell."""
    made = dial_until_up(ns, f"10.9.0.{number}", "10.9.0.1", 64512)
    made.say(update())  # End-of-RIB
    return made


def _keep_alive(speakers: list[RawSpeaker]) -> None:
    def for_ever() -> None:
        with contextlib.suppress(OSError):  # the end
            while True:
                for one in speakers:
                    one.say(message(KEEPALIVE))
                time.sleep(10)

    threading.Thread(target=for_ever, daemon=True).start()


def _names(node: BgpNode, address: str) -> bool:
    return node.loaded() and node.peer(address) is not None


def _up_since(node: BgpNode) -> dict[str, float]:
    found = node.status()
    return {peer.address: peer.since for peer in found.peers if peer.state == "up"} if found else {}


# --- 4: at rest -----------------------------------------------------------------------------------


def _receive_idle(world: World, count: int) -> None:
    node = _receiving_node(world)
    sender = world.bird(9)
    sender.start(_sender_config(count))
    wait(lambda: _standing(node.ns, routes.PROTOCOL_BGP) == count)
    time.sleep(3)
    pids = _pids(node)
    before = {name: cpu(pid) for name, pid in pids.items()}
    time.sleep(_IDLE)
    print(f"idle for {_IDLE:.0f} s with {count} prefixes")
    for name, pid in pids.items():
        share = 100 * (cpu(pid) - before[name]) / _IDLE
        print(f"  {name:7} {resident(pid):6.1f} MB resident  {share:.2f} % of a core")


def _pids(node: BgpNode) -> dict[str, int]:
    assert node.process is not None
    return {"ExaBGP": node.process.pid, "agent": node.agent_pid()}


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
