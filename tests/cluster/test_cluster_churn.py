"""Pods come and go on three nodes while their CNI servers are killed: nothing double, nothing left over.

The runtime does as kubelet does: a sandbox that could not be attached is detached until that succeeds,
and another one is tried. TORTIE_SEED repeats a run's choices, though not its races.
"""

import contextlib
import os
import random
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from tests.support.leftovers import ipam_faults, of_pods
from tests.support.rest import at_rest
from tortie.core.errors import CniError
from tortie.lab.cluster import Lab, LabNode, wait_until

pytestmark = pytest.mark.cluster

PODS, AT_ONCE = 200, 8
MORE, MOST = 40, 600  # pods, should all those have had a quiet time
_SERVER = ("calico-node", "-cni-server")
_CALLS_BETWEEN = (10, 30)  # two deaths: calls that succeed
_PATIENCE = 240.0  # seconds for one pod to get its sandbox, or for one to be detached


@dataclass
class Log:
    """What happened, for the verdict and for whoever looks at a failure."""

    errors: Counter[str] = field(default_factory=Counter)  # "ADD|DEL: the message's start" -> how often
    calls: int = 0  # ADDs and DELs that succeeded; without a lock, one more or less does not matter
    kills: int = 0
    lives: list[tuple[str, float, float]] = field(default_factory=list)  # (address, from, until)

    def was_quiet(self) -> bool:
        """Whether no call was cut off in the middle, of one kind or the other."""
        cut = (
            any(text.startswith(f"{verb}: the CNI server") for text in self.errors) for verb in ("ADD", "DEL")
        )
        return self.kills < 10 or not all(cut)

    def double(self) -> list[str]:
        """Addresses that two pods had at the same time."""
        lives = sorted(self.lives)
        pairs = pairwise(lives)
        return [one[0] for one, other in pairs if one[0] == other[0] and other[1] < one[2]]


@dataclass
class Sandbox:
    node: LabNode
    pod: str
    container: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def netns(self) -> str:
        return f"/run/netns/cni-{self.container[:12]}"

    def make(self) -> None:
        self.node.box.run("ip", "netns", "add", os.path.basename(self.netns))

    def remove(self) -> None:
        self.node.box.run("ip", "netns", "del", os.path.basename(self.netns))

    def attach(self, wishes: dict[str, Any]) -> str:
        """The address. Raises CniError."""
        found = self.node.runtime.add(self.container, self.netns, "eth0", self.pod, "default", wishes)
        return str(found["ips"][0]["address"].partition("/")[0])

    def detach(self) -> None:
        self.node.runtime.delete(self.container, self.netns, "eth0", self.pod, "default")


def wished(port: int) -> dict[str, Any]:
    """Work for the plugins behind ours in the chain."""
    mapping = {"hostPort": port, "containerPort": 80, "protocol": "tcp"}
    return {"portMappings": [mapping], "bandwidth": {"ingressRate": 10**8, "ingressBurst": 10**8}}


def kubelet(node: LabNode, number: int, choices: random.Random, log: Log) -> None:
    """One pod's life, from its first sandbox to the end of its last."""
    wishes = {kind: wish for kind, wish in wished(20_000 + number).items() if choices.random() < 0.3}
    early = choices.random() < 0.2  # the namespace goes before its DEL, as after a restart of the runtime
    deadline = time.monotonic() + _PATIENCE
    while True:
        sandbox = Sandbox(node, f"churn-{number}")
        sandbox.make()
        try:
            address = sandbox.attach(wishes)
            log.calls += 1
            break
        except CniError as err:
            log.errors[f"ADD: {err.msg[:60]}"] += 1
            end(sandbox, early, log)
            assert time.monotonic() < deadline, f"no sandbox for {sandbox.pod}: {dict(log.errors)}"
    began = time.monotonic()
    time.sleep(choices.uniform(0.0, 0.3))
    log.lives.append((address, began, time.monotonic()))
    end(sandbox, early, log)


def end(sandbox: Sandbox, early: bool, log: Log) -> None:
    if early:
        sandbox.remove()
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            sandbox.detach()
            log.calls += 1
            break
        except CniError as err:
            log.errors[f"DEL: {err.msg[:60]}"] += 1
            assert time.monotonic() < deadline, f"cannot detach {sandbox.pod}: {dict(log.errors)}"
            time.sleep(0.2)
    if not early:
        sandbox.remove()


@contextlib.contextmanager
def killing(lab: Lab, choices: random.Random, log: Log) -> Iterator[None]:
    """Meanwhile, kill a CNI server after every so many calls: as many deaths, however fast the machine."""
    done = threading.Event()

    def kill() -> None:
        following = 0
        while not done.is_set():
            if log.calls < following:
                done.wait(0.02)
                continue
            following = log.calls + choices.randint(*_CALLS_BETWEEN)
            done.wait(choices.uniform(0.0, 0.1))
            log.kills += len(choices.choice(list(lab.nodes.values())).box.kill(*_SERVER))

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_churn_under_fire_leaves_nothing(lab: Lab) -> None:
    seed = os.environ.get("TORTIE_SEED") or f"{random.SystemRandom().getrandbits(32)}"
    print(f"TORTIE_SEED={seed}")
    nodes = list(lab.nodes.values())
    for node in nodes:  # each has its block, and has made what the first pod makes
        lab.add_pod(f"first-{node.name}", node.name, **wished(20_000))
        lab.delete_pod(f"first-{node.name}")
    before = settled(lab)
    log = Log()
    begun = 0
    with killing(lab, random.Random(seed), log), ThreadPoolExecutor(AT_ONCE) as pool:
        while begun < PODS or (log.was_quiet() and begun < MOST):  # what is hit is chance
            numbers = range(begun, begun + (MORE if begun else PODS))
            lives = [
                pool.submit(kubelet, nodes[number % 3], number, random.Random(f"{seed} {number}"), log)
                for number in numbers
            ]
            for life in lives:
                life.result()
            begun = numbers.stop
    print(f"{log.kills} kills, {dict(log.errors)}")

    assert log.double() == []
    assert len(log.lives) == begun
    wait_until(lambda: of_pods(lab) == before, "everything of the pods to go", 120, lambda: odds(lab, before))
    assert ipam_faults(lab) == []
    shown = lab.calicoctl("ipam", "show").stdout
    assert re.search(r"^\| IP Pool +\| 192\.168\.0\.0/16 +\| +65536 +\| +0 \(0%\) \|", shown, re.M), shown
    assert not log.was_quiet(), (log.kills, log.errors)


def test_what_a_pod_leaves_would_be_seen(pods: Lab) -> None:
    """The control; and after all the killing pods still come up and reach each other."""
    faults = "\n".join([*of_pods(pods), *ipam_faults(pods)])
    container = pods.pods["a"].container_id
    assert f"etcd: /calico/ipam/v2/handle/k8s-pod-network.{container}" in faults
    assert (
        "etcd: /calico/resources/v3/projectcalico.org/workloadendpoints/default/node--1-k8s-a-eth0" in faults
    )
    assert "node-1: link cali" in faults and "node-1: iptables :cali-tw-cali" in faults
    assert f"node-1: route {pods.pods['a'].address()} dev cali" in faults
    assert f"node-1: neighbour {pods.pods['a'].address()} dev cali" in faults
    assert f"node-1: file /run/netns/cni-{container[:12]}" in faults
    assert "node-1: file /var/run/calico/endpoint-status/k8s default%2Fa eth0" in faults
    assert re.search(r"block/\S+ has \[\d+, \d+\] in use", faults)


def settled(lab: Lab) -> set[str]:
    """What there is when felix has finished with the pods that were."""

    def without_pods(seen: set[str]) -> bool:
        return not any("cali-tw-" in line for line in seen)

    return at_rest(lambda: of_pods(lab), "the nodes", 240, looks=3, seconds=5.0, able=without_pods)


def odds(lab: Lab, before: set[str]) -> str:
    now = of_pods(lab)
    return "\n".join(
        [*(f"+ {one}" for one in sorted(now - before)), *(f"- {one}" for one in sorted(before - now))]
    )
