"""What each thing that a pod's packet meets costs: `sudo ./dev bench path [TURNS]`

Runs itself again inside namespaces of its own; nothing outside is touched. A process sends packets to a pod
of another node that takes none of them, so that all of a packet's way - through both nodes and the network
between them - is gone in the sender's own time, on one CPU. The least of many bursts is what it costs;
whatever else runs on the machine only makes some of them longer. First for namespaces wired as pods are with
nothing but routes, to which the things that policy needs are added one by one; then between pods.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path as Folder

sys.path.insert(0, str(Folder(__file__).resolve().parent.parent))

from bench.overlay import FIRST, Path, bare_path, pod_path
from bench.parts import isolated
from tortie.lab.box import Box
from tortie.lab.cluster import Lab

_TURNS = 10
_PORT = "7777"
# Answers until it is told to be still; from then on a full buffer drops what comes, without waking anybody.
_SINK = """
import socket, sys
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
one.bind(("", int(sys.argv[1])))
print("ready", flush=True)
while True:
    word, peer = one.recvfrom(64)
    if word == b"still":
        break
    one.sendto(word, peer)
sys.stdin.read()
"""
# What tracking calls a connection is one that was answered. Nanoseconds of a packet in the best of bursts.
_SENDER = """
import socket, sys, time
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.settimeout(0.2)
one.connect((sys.argv[1], int(sys.argv[2])))
answers = 0
while answers < 3:
    one.send(b"hello")
    try:
        answers += len(one.recv(64)) > 0
    except TimeoutError:
        pass
one.send(b"still")
time.sleep(0.01)
one.settimeout(None)
best = float("inf")
for _ in range(60):
    began = time.monotonic_ns()
    for _ in range(300):
        one.send(b"anything")
    best = min(best, (time.monotonic_ns() - began) / 300)
print(best)
"""
_TRACKED = "ct state established,related accept;"
_MAPS = """
    chain known { ct state established,related accept; };
    map from { type ifname : verdict; elements = { "out" : goto known }; };
    map to { type ifname : verdict; elements = { "out" : goto known }; };
    chain origin { iifname vmap @from; drop; };
    chain target { oifname vmap @to; drop; };
"""


def _chain(kind: str, hook: str, priority: int, rules: str) -> str:
    return f"chain {hook}{abs(priority)} {{ type {kind} hook {hook} priority {priority}; {rules} }};\n"


_FORWARD = _chain("filter", "forward", 0, _TRACKED)
_NAT = _chain("nat", "postrouting", 110, "")
_SOURCES = _chain("filter", "prerouting", -300, 'iifname "out" fib saddr . mark . iif oif 0 drop;')
_DISPATCH = _MAPS + _chain("filter", "forward", 0, 'iifname "out" jump origin; oifname "out" jump target;')
_ELEMENTS = {  # what a node has -> its rules, by the names of bare_path()
    "nothing but routes": "",
    "+ connections tracked, one rule on that": _FORWARD,
    "+ addresses can be translated": _FORWARD + _NAT,
    "+ what pods send has its own source": _FORWARD + _NAT + _SOURCES,
    "+ the pod's own chain found first": _DISPATCH + _NAT + _SOURCES,
}


def main() -> None:
    isolated.ensure()
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else _TURNS
    folder = Folder(tempfile.mkdtemp(prefix="bench-path-"))
    try:
        report(folder, turns, "iptables")
        report(folder, turns, "nftables", FELIX_NFTABLESMODE="Enabled")
    finally:
        shutil.rmtree(folder)


def report(folder: Folder, turns: int, dataplane: str, **felix: str) -> None:
    lab = Lab(folder / dataplane, 2, agent_env=felix)
    ours = f"pods, {dataplane}"
    found = dict.fromkeys([*_ELEMENTS, ours], float("inf"))
    try:
        lab.up()
        bare, pods = bare_path(lab, 1), pod_path(lab, 0, "none", {})
        for _ in range(turns):
            for name, rules in _ELEMENTS.items():
                for host in lab.hosts.values():
                    put_rules(host, rules)
                found[name] = min(found[name], nanoseconds(bare))
            found[ours] = min(found[ours], nanoseconds(pods))
    finally:
        lab.down()
    least = found["nothing but routes"]
    print(f"{'a packet between pods of two nodes':42}{'ns':>8}{'more':>8}")
    for name, taken in found.items():
        print(f"{name:42}{taken:8.0f}{taken - least:8.0f}")
    print(flush=True)


def put_rules(host: Box, rules: str) -> None:
    host.run("nft", "-f", "-", stdin=f"flush ruleset\ntable ip least {{\n{rules}}}\n")


def nanoseconds(path: Path) -> float:
    """Of one packet, in the best of many bursts."""
    command = [*path.server, sys.executable, "-c", _SINK, _PORT]
    sink = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert sink.stdout is not None
    sink.stdout.readline()
    command = [*path.client, *FIRST, sys.executable, "-c", _SENDER, path.address, _PORT]
    try:
        sent = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return float(sent.stdout)
    finally:
        sink.communicate()


if __name__ == "__main__":
    main()
